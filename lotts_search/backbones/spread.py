"""Spread a model over several GPUs, for weights that one of them cannot hold.

The blocks of the network and then those of the text encoders follow each other over the GPUs. The autoencoder, and what the network
has beside its blocks, are on the first GPU, with the latents. Hooks move what a module gets to its own GPU. So one GPU computes at a
time: this gains memory, not speed.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from lotts_search.errors import BadInput


def gpus(first: torch.device, count: int) -> list[torch.device]:
    """Return ``count`` CUDA devices from ``first`` on.

    Raises:
        BadInput: torch does not see so many.
    """
    start, seen = first.index or 0, torch.cuda.device_count() if first.type == "cuda" else 0
    if start + count > seen:
        raise BadInput(
            f"spread={count} needs the GPUs cuda:{start} to cuda:{start + count - 1}, and torch sees {seen or 'none'}"
        )
    return [torch.device("cuda", start + index) for index in range(count)]


def free_bytes(device: torch.device) -> int:
    """Return the memory of a CUDA device that nothing uses."""
    return int(torch.cuda.mem_get_info(device)[0])


def spread(
    model: str,
    network: nn.Module,
    encoders: Sequence[nn.Module],
    others: Sequence[nn.Module],
    devices: Sequence[torch.device],
    rooms: Sequence[int],
) -> None:
    """Move the modules of a model to several devices, and let them move their inputs.

    Args:
        model: its name, for messages.
        network: the denoiser; its outputs are on the first device.
        encoders: text encoders; their outputs are on the first device, wherever they compute.
        others: modules that stay on the first device.
        devices: the devices; the first holds latents, prompts and images.
        rooms: free memory of each in bytes.

    Raises:
        BadInput: the weights do not fit.
    """
    parts = [_Divided(module) for module in (network, *encoders)]
    sizes = list(chain.from_iterable(part.sizes() for part in parts))
    sizes[0] += sum(map(_bytes, others))
    found = divide(sizes, rooms)
    if found is None:
        free = " and ".join(f"{_gib(room)} on {device}" for device, room in zip(devices, rooms, strict=True))
        raise BadInput(
            f"model {model} does not fit: its weights take {_gib(sum(sizes))}, and free are {free}. Choose a smaller dtype, more GPUs, "
            "or offload='model'"
        )
    for module in others:
        module.to(devices[0])
    places = iter(devices[room] for room in found)
    for part in parts:
        part.move([next(places) for _ in part.sizes()])
    for encoder in encoders:
        encoder.register_forward_hook(lambda _, __, output: send_to_device(output, devices[0]))


def divide(sizes: Sequence[int], rooms: Sequence[int]) -> list[int] | None:
    """Return the room of each size: ascending from the first room on, and so that the least space left in a room that is used is as
    large as possible. None = they do not fit."""

    def fill(free: int) -> list[int]:
        places, room, used = [], 0, 0
        for size in sizes:
            while room < len(rooms) and used + size > rooms[room] - free:
                room, used = room + 1, 0
            places.append(room)
            used += size
        return places

    def fails(free: int) -> bool:
        places = fill(free)
        return places[0] > 0 or places[-1] == len(rooms)

    possible = bisect.bisect_left(range(max(rooms) + 1), True, key=fails)
    return fill(possible - 1) if possible else None


class _Divided:
    """A module as the members of its outermost lists of layers, its blocks, and the rest."""

    def __init__(self, module: nn.Module):
        self.module, self.blocks = module, _blocks(module)
        self._rest: list[nn.Module] = []
        self._around: list[nn.Module] = []  # modules that hold blocks, and perhaps weights of their own
        self._walk(module, set(self.blocks))

    def _walk(self, module: nn.Module, inside: set[nn.Module]) -> None:
        self._around.append(module)
        for child in module.children():
            if inside.isdisjoint(child.modules()):
                self._rest.append(child)
            elif child not in inside:
                self._walk(child, inside)

    def sizes(self) -> list[int]:
        """Return the bytes of the rest and of each block."""
        blocks = list(map(_bytes, self.blocks))
        return [_bytes(self.module) - sum(blocks), *blocks]

    def move(self, devices: Sequence[torch.device]) -> None:
        """Move the rest and each block to their devices, with hooks that move inputs there."""
        for module in self._around:
            module._apply(lambda tensor: tensor.to(devices[0]), recurse=False)  # type: ignore[no-untyped-call]
        self.module.register_forward_pre_hook(_bringing(devices[0]), with_kwargs=True)
        for module in self._rest:
            module.to(devices[0]).register_forward_pre_hook(_bringing(devices[0]), with_kwargs=True)
        for block, device in zip(self.blocks, devices[1:], strict=True):
            block.to(device).register_forward_pre_hook(_bringing(device), with_kwargs=True)


def _blocks(module: nn.Module) -> list[nn.Module]:
    lists = [child for child in module.children() if isinstance(child, nn.ModuleList)]
    if lists:
        return list(chain.from_iterable(lists))
    return [block for child in module.children() for block in _blocks(child)]


def _bytes(module: nn.Module) -> int:
    """Return the memory of weights and buffers; those that are used twice count once."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _bringing(device: torch.device) -> Any:
    """Return a hook that brings the inputs of a module to a device."""
    return lambda _, args, kwargs: (send_to_device(args, device), send_to_device(kwargs, device))
