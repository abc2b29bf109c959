"""Recording attention in processors of diffusers, without changing what the network computes.

The processor of each attention module that is read is wrapped for one call (``set_attn_processor``, per module,
restored afterwards). The original processor still computes the output, so the output's bits do not change; a
:class:`Recorder` only repeats the query and key projections.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from lotts_search.backbones.attention.base import RowAttention, attention_map
from lotts_search.errors import BadInput


class Recorder(ABC):
    """Collects the attention of one call at one grid.

    Memory is one map per row, and for rows that keep their queries rows × layers × h·w × channels numbers in the
    network's dtype: for one row in bfloat16 157 MB for SDXL at 32×32 (60 layers) and 52 MB at 64×64 (10 layers), 7 MB
    for SD2.1 at 24×24, 151 MB for Stable Diffusion 3 medium (12 blocks).

    Args:
        positions: for each row of the call the text positions that count.
        queries: for each row whether its image queries are kept.
        grid: (h, w) of the attention that is read.
    """

    def __init__(self, positions: list[list[int]], queries: list[bool], grid: tuple[int, int]):
        self.grid = grid
        self._positions = positions
        self._wanted = [row for row, wanted in enumerate(queries) if wanted]
        self._words: Tensor | None = None
        self._weights: Tensor | None = None
        self._layers = 0
        self._queries: list[Tensor] = []

    @abstractmethod
    def see(self, attn: Attention, hidden: Tensor, text: Tensor | None, mask: Tensor | None) -> None:
        """Record one attention call.

        Args:
            attn: the module.
            hidden: [B, N, C] image states.
            text: [B, L, D] text states, None in self-attention.
            mask: of the text, as the processor gets it.
        """

    def _read(self, query: Tensor, key: Tensor, first: int, mask: Tensor | None = None) -> None:
        """Add the attention of a layer; the text's keys begin at index ``first``."""
        if self._weights is None:
            self._weights = torch.zeros(len(key), key.shape[2], 1, device=key.device)
            for row, places in enumerate(self._positions):
                self._weights[row, [first + place for place in places]] = 1 / max(1, len(places))
        words = attention_map(query, key, self._weights.to(key.device), mask)[..., 0]
        self._words = words if self._words is None else self._words.to(words.device) + words
        self._layers += 1

    def rows(self) -> list[RowAttention]:
        """Return what was recorded, one entry per row.

        Raises:
            BadInput: no cross-attention ran at the grid.
        """
        if self._words is None:
            raise BadInput(f"the network has no cross-attention at grid {self.grid[0]}x{self.grid[1]}")
        words = (self._words / self._layers).view(-1, *self.grid)
        kept = {row: tuple(layer[i] for layer in self._queries) for i, row in enumerate(self._wanted)}
        return [RowAttention(words[row], kept.get(row, ())) for row in range(len(words))]


def split(attn: Attention, flat: Tensor) -> Tensor:
    """Return [B, heads, N, d] of a projection [B, N, heads·d]."""
    return flat.view(*flat.shape[:-1], attn.heads, -1).transpose(1, 2)


def normal(norm: Any, heads: Tensor) -> Tensor:
    """Apply a norm of queries or keys, if the module has one."""
    return heads if norm is None else norm(heads)


def image_query(attn: Attention, hidden: Tensor) -> Tensor:
    """Return the queries [B, heads, N, d] of image states [B, N, C]."""
    return normal(attn.norm_q, split(attn, attn.to_q(hidden)))


class _Watched:
    """An attention processor that lets a recorder see, then does what the original does."""

    def __init__(self, original: Any, record: Recorder):
        self.original, self.record = original, record

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        self.record.see(attn, hidden_states, encoder_hidden_states, attention_mask)
        output: Tensor = self.original(
            attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
        )
        return output


@contextlib.contextmanager
def watched(network: Any, names: Iterable[str], record: Recorder) -> Iterator[None]:
    """Let ``record`` see the attention of the named processors in the network call inside the block."""
    originals = dict(network.attn_processors)
    network.set_attn_processor(originals | {name: _Watched(originals[name], record) for name in names})
    try:
        with uncompiled(network):
            yield
    finally:
        network.set_attn_processor(originals)


@contextlib.contextmanager
def uncompiled(network: Any) -> Iterator[None]:
    """Run compiled modules eagerly inside the block; they would be compiled again for each new recorder."""
    if compiled(network):  # setting the stance imports the whole compiler
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def compiled(network: Any) -> bool:
    """Return whether modules of a network are compiled."""
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in network.modules())
