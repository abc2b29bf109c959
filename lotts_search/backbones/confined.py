"""Networks that compute only some of their tokens, the active ones; of the frozen others they take cached keys and values.

``record`` is a call of the whole network that keeps keys and values beside it, by hooks that do not change its bits.
``predict_confined`` is a call in which only the active tokens pass the blocks. The tokens of a confined call are those of
:mod:`lotts_search.work.confined`: squares with sides of ``info.confines`` latent cells, counted row by row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(eq=False)
class Frozen:
    """What a row's frozen tokens gave in a whole call.

    Attributes:
        active, places: [A], [F] indices of the active and of the frozen tokens, ascending.
        keys, values: [F, ...] of each attention module in the order of the network, as attention reads them.
        kept: [F, C] of each layer of a U-Net; of convolutions only those that they read.
        grids, neighbours: ``active`` and ``places`` at the grids of a U-Net, and what convolutions read there.
    """

    active: Tensor
    places: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    kept: dict[Any, Tensor] = field(default_factory=dict)
    grids: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    neighbours: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)


@runtime_checkable
class Confines(Protocol):
    """The network can compute only some of its image tokens."""

    network: Any
    """The diffusers model."""

    def frozen_bytes(self) -> int:
        """Count the bytes that are kept of one frozen token of a row, at most; visits all layers."""

    def record(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: Mapping[int, Frozen]) -> Tensor:
        """Call the network as ``predict`` does, with the same output, and fill the keys and values of rows of the call."""

    def predict_confined(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: list[Frozen]) -> Tensor:
        """Return the output [B, C, H, W] at the active tokens; all rows have equally many. What stands at the frozen ones does not
        count."""


def attentions(network: Any) -> list[Any]:
    """Return the attention modules of a diffusers model, in order."""
    return [module for module in network.modules() if hasattr(module, "to_k") and hasattr(module, "processor")]


class Taken:
    """Takes what a whole call computes at some image tokens of some of its rows, of all these rows at once.

    Args:
        places: indices of the tokens, by row of the call; any number in each.
        tokens: number of all image tokens of a row.

    Attributes:
        places: [K] the indices, row after row.
    """

    def __init__(self, places: Mapping[int, Tensor], tokens: int):
        self._tokens, self._sizes = tokens, [len(found) for found in places.values()]
        self._rows = torch.cat([torch.full_like(found, row) for row, found in places.items()])
        self.places = torch.cat(list(places.values()))
        self._flat: dict[tuple[int, torch.device], Tensor] = {}

    def of(self, values: Tensor) -> Tensor:
        """Return [K, C] of values [B, N, C] whose last positions are the image tokens."""
        if values.device != self.places.device:
            self._rows, self.places = self._rows.to(values.device), self.places.to(values.device)
        length = values.shape[1]
        if not values.is_contiguous():
            return values[self._rows, self.places + (length - self._tokens)]
        if (key := (length, values.device)) not in self._flat:
            self._flat[key] = self._rows * length + self.places + (length - self._tokens)
        return values.flatten(0, 1).index_select(0, self._flat[key])  # several times faster than the other

    def apart(self, found: Tensor) -> list[Tensor]:
        """Return the part [k, ...] of each row of [K, ...], in memory of its own, which is free again when that row is done."""
        return [part.clone() for part in torch.split(found, self._sizes)]


@contextlib.contextmanager
def gathered(embedder: nn.Module, projection: nn.Module, active: Tensor, tokens: int) -> Iterator[None]:
    """Let only the active tokens pass the network in the call inside the block.

    Args:
        embedder: its output [B, tokens, D] are the image tokens.
        projection: its output [B, A, P] is put in the places of the active tokens, with 0 in those of others.
        active: [B, A].
    """

    def gather(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.gather(1, active[:, :, None].expand(-1, -1, output.shape[-1]))

    def scatter(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        everywhere = output.new_zeros(len(output), tokens, output.shape[-1])
        return everywhere.scatter(1, active[:, :, None].expand_as(output), output)

    with embedder.register_forward_hook(gather), projection.register_forward_hook(scatter):
        yield


@contextlib.contextmanager
def processed(modules: list[Any], processors: list[Any]) -> Iterator[None]:
    """Replace the processors of attention modules in the call inside the block."""
    originals = [module.processor for module in modules]
    try:
        for module, processor in zip(modules, processors, strict=True):
            module.processor = processor
        yield
    finally:
        for module, processor in zip(modules, originals, strict=True):
            module.processor = processor
