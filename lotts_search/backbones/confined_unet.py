"""Confined calls of U-Nets, Stable Diffusion and SDXL: only the active tokens, which are latent cells, pass the network.

The model's own ``forward`` runs on the active tokens of each grid as if they were an image of A by 1 pixels, with another
``forward`` of the layers that look further than one pixel (:mod:`lotts_search.backbones.unet_forwards`). A convolution takes the
neighbours of its active tokens from its frozen inputs; a group norm takes sums over the frozen ones; self-attention takes their
keys and values. All of them are those of the last whole call. At coarser grids than the latent's the tokens that hold most
active cells are active, the same share of all. Memory per frozen cell and row: keys and values, and beside active cells the
inputs of convolutions (in bfloat16 together at most 29 kB for Stable Diffusion 2.1 and 43 kB for SDXL).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lotts_search.backbones.confined import Frozen, Taken
from lotts_search.backbones.unet_forwards import Call, as_image, as_tokens, beside, convolve, normalize, sums
from lotts_search.backbones.unet_layers import Grid, Layer, kept_at, layers


class UNetConfined:
    """The part of a backbone that makes it one of :class:`~lotts_search.backbones.confined.Confines`."""

    unet: Any
    _size: Grid
    """Height and width of the latent."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Call the network, see :class:`~lotts_search.backbones.base.Backbone`."""
        raise NotImplementedError

    def frozen_bytes(self) -> int:
        numbers = sum(math.prod(layer.grid) * layer.kept for layer in layers(self.unet, self._size))
        size = torch.empty(0, dtype=self.unet.dtype).element_size()
        return -(-numbers * size // math.prod(self._size))

    @torch.inference_mode()
    def record(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: Mapping[int, Frozen]) -> Tensor:
        with recorded(self.unet, self._size, frozen):
            return self.predict(latents, timesteps, conditioning)

    @torch.inference_mode()
    def predict_confined(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: list[Frozen]) -> Tensor:
        with confined(self.unet, self._size, frozen):
            return self.predict(latents, timesteps, conditioning)

    def without_image(self, call: Callable[[Any], object]) -> Callable[[Any], None]:
        """Return a function that calls a copy of the U-Net on the meta device without any active token, to count what does not
        depend on their number."""

        def least(copy: Any) -> None:
            with confined(copy, self._size, [unrecorded(copy, self._size, 0)]):
                call(copy)

        return least


def unrecorded(unet: Any, latent: Grid, active: int) -> Frozen:
    """Return what the frozen tokens of a row would give, with numbers that mean nothing: for counting on the meta device.

    Args:
        active: number of active cells.
    """
    # Which frozen tokens are read is known only by their values, which a meta device does not have.
    everything = torch.arange(math.prod(latent), device="cpu")
    frozen = Frozen(everything[:active], everything[active:])
    for layer in layers(unet, latent):
        if isinstance(layer.module, nn.GroupNorm):
            frozen.kept[layer.module] = torch.empty(2, layer.module.num_groups)
        elif layer.kept:
            frozen.kept[layer.module] = torch.empty(len(kept_at(frozen, layer, latent)), layer.kept, dtype=unet.dtype)
    return frozen


@contextlib.contextmanager
def recorded(unet: Any, latent: Grid, frozen: Mapping[int, Frozen]) -> Iterator[None]:
    """Keep what frozen tokens give in the call inside the block.

    Args:
        latent: its height and width.
        frozen: by row of the call.
    """

    groups: dict[int, dict[int, Frozen]] = {}
    for row, one in frozen.items():
        groups.setdefault(len(one.active), {})[row] = one
    taken: dict[Any, Taken] = {}

    def keep(layer: Layer, values: Tensor) -> None:
        """Keep values [B, C, h, w] or [B, N, C] of all tokens."""
        tokens = as_tokens(values) if values.ndim == 4 else values
        for active, rows in groups.items():
            kind = active, layer.grid, layer.to, layer.convolution is None
            if kind not in taken:
                places = {row: kept_at(one, layer, latent) for row, one in rows.items()}
                taken[kind] = Taken(places, tokens.shape[1])
            found = taken[kind].of(tokens)
            if _normal(layer):
                parts = list(sums(layer.module, found.view(len(rows), -1, found.shape[1])).unbind(1))
            else:
                parts = taken[kind].apart(found)
            for one, part in zip(rows.values(), parts, strict=True):
                one.kept[layer.module] = part

    with contextlib.ExitStack() as hooks:
        for layer in layers(unet, latent):
            if layer.convolution is None and not _normal(layer):
                hook = layer.module.register_forward_hook(lambda _, __, output, layer=layer: keep(layer, output))
            elif layer.kept or _normal(layer):
                hook = layer.module.register_forward_pre_hook(lambda _, inputs, layer=layer: keep(layer, inputs[0]))
            else:
                continue
            hooks.enter_context(hook)
        yield


@contextlib.contextmanager
def confined(unet: Any, latent: Grid, frozen: list[Frozen]) -> Iterator[None]:
    """Confine the U-Net in the call inside the block to the active tokens of its rows.

    Args:
        latent: its height and width.
        frozen: of each row.
    """
    active, call = torch.stack([row.active for row in frozen]), Call(latent, frozen)

    def enter(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        places = active[:, :, None].expand(-1, -1, output.shape[1]).to(output.device)
        return as_image(as_tokens(output).gather(1, places))

    def leave(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        batch, channels = output.shape[:2]
        everywhere = output.new_zeros(batch, channels, math.prod(latent))
        places = active[:, None].expand(-1, channels, -1).to(output.device)
        everywhere = everywhere.scatter(2, places, output[..., 0])
        return everywhere.view(batch, channels, *latent)

    with contextlib.ExitStack() as stack:
        for layer in layers(unet, latent):
            module = layer.module
            if _normal(layer):
                stack.enter_context(_replaced(module, normalize(layer, call)))
            elif layer.convolution is None:
                stack.enter_context(module.register_forward_hook(beside(module, call)))
            else:
                stack.enter_context(_replaced(layer.convolution, convolve(layer, call)))
                if module is not layer.convolution:
                    stack.enter_context(
                        _replaced(module, lambda image, *_, layer=layer, **__: layer.convolution(image))
                    )
        stack.enter_context(unet.conv_in.register_forward_hook(enter))
        stack.enter_context(unet.conv_out.register_forward_hook(leave))
        yield


def _normal(layer: Layer) -> bool:
    return isinstance(layer.module, nn.GroupNorm)


@contextlib.contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the ``forward`` of a module in the call inside the block."""
    name = "_old_forward" if "_old_forward" in vars(module) else "forward"  # hooks of accelerate call the first
    before = vars(module).get(name)
    setattr(module, name, forward)
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)
