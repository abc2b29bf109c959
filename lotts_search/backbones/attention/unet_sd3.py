"""Reading attention out of a U-Net, or out of Stable Diffusion 3's transformer, without changing what it computes.

A :class:`Recorder` wraps the processor of each attention module at the wanted grid for the length of one call
(``set_attn_processor``, per module, restored afterwards). The original processor still computes the output, so the
output's bits do not change; the recorder repeats only the query and key projections beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from lotts_search.backbones.attention.base import RowAttention, attention_map
from lotts_search.errors import BadInput


def unet_grids(unet: Any, latent: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """The grids (h, w) at which a U-Net has cross-attention, by their shorter side, for latents [H, W]."""
    height, width = latent
    deepest = len(unet.config["down_block_types"]) - 1
    # Names are like down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor; not every block has such layers.
    places = {tuple(name.split(".")[:2]) for name in unet.attn_processors if ".attn2." in name}
    depths = {
        deepest - int(index) if block == "up_blocks" else int(index) if block == "down_blocks" else deepest
        for block, index in places
    }
    shapes = [(-(-height // 2**depth), -(-width // 2**depth)) for depth in depths]
    return {min(shape): shape for shape in shapes}


class Recorder:
    """Collects attention during one call.

    Memory is one map a row, plus the queries of the rows that want them, rows × layers × h·w × channels numbers in the
    network's dtype: of one row in bfloat16 157 MB for SDXL at 32×32 (60 layers) and 52 MB at 64×64 (10 layers), 7 MB for
    SD2.1 at 24×24, 151 MB for Stable Diffusion 3 medium (12 blocks).
    """

    def __init__(self, positions: list[list[int]], queries: list[bool], grid: tuple[int, int]):
        self.grid = grid
        self._positions = positions
        self._wanted = [row for row, wanted in enumerate(queries) if wanted]
        self._words: Tensor | None = None
        self._weights: Tensor | None = None
        self._layers = 0
        self._queries: list[Tensor] = []

    def see(self, attn: Attention, hidden: Tensor, text: Tensor | None, mask: Tensor | None) -> None:
        """Note one attention call: hidden states [B, N, C], text [B, L, D] or None for self-attention."""
        if hidden.ndim != 3 or hidden.shape[1] != self.grid[0] * self.grid[1]:
            return
        if text is not None:
            self._see_words(attn, hidden, text, mask)
        elif self._wanted:
            self._queries.append(_query(attn, hidden[self._wanted]))

    def _see_words(self, attn: Attention, hidden: Tensor, text: Tensor, mask: Tensor | None) -> None:
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        key = _normal(attn.norm_k, _split(attn, attn.to_k(text)))
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, text.shape[1], len(text))
            mask = mask.view(len(text), attn.heads, -1, mask.shape[-1])
        self._read(_query(attn, hidden), key, 0, mask)

    def _read(self, query: Tensor, key: Tensor, first: int, mask: Tensor | None = None) -> None:
        """Add the attention of a layer; the text's keys begin at index ``first``."""
        if self._weights is None:
            self._weights = torch.zeros(len(key), key.shape[2], 1, device=key.device)
            for row, places in enumerate(self._positions):
                self._weights[row, [first + place for place in places]] = 1 / max(1, len(places))
        words = attention_map(query, key, self._weights, mask)[..., 0]
        self._words = words if self._words is None else self._words + words
        self._layers += 1

    def rows(self) -> list[RowAttention]:
        """What was seen, one entry a row.

        Raises:
            BadInput: no cross-attention ran at the grid.
        """
        if self._words is None:
            raise BadInput(f"the network has no cross-attention at grid {self.grid[0]}x{self.grid[1]}")
        words = (self._words / self._layers).view(-1, *self.grid)
        kept = {row: tuple(layer[i] for layer in self._queries) for i, row in enumerate(self._wanted)}
        return [RowAttention(words[row], kept.get(row, ())) for row in range(len(words))]


class _JointRecorder(Recorder):
    """Collects the joint attention of Stable Diffusion 3: image queries over the keys of image and text together."""

    def see(self, attn: Attention, hidden: Tensor, text: Tensor | None, mask: Tensor | None) -> None:
        assert text is not None
        query = _query(attn, hidden)
        if self._wanted:
            self._queries.append(query[self._wanted])
        image = _normal(attn.norm_k, _split(attn, attn.to_k(hidden)))
        words = _normal(attn.norm_added_k, _split(attn, attn.add_k_proj(text)))
        self._read(query, torch.cat([image, words], dim=2), hidden.shape[1])


def _split(attn: Attention, flat: Tensor) -> Tensor:
    return flat.view(*flat.shape[:-1], attn.heads, -1).transpose(1, 2)


def _normal(norm: Any, heads: Tensor) -> Tensor:
    return heads if norm is None else norm(heads)


def _query(attn: Attention, hidden: Tensor) -> Tensor:
    return _normal(attn.norm_q, _split(attn, attn.to_q(hidden)))


class _Watching:
    """An attention processor that lets the recorder see, then does what the original does."""

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
def uncompiled(network: Any) -> Iterator[None]:
    """Run compiled blocks as they are written inside the block: with each new recorder they would be compiled anew."""
    # Asked first, as the stance imports the whole compiler.
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in network.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextlib.contextmanager
def capture_unet(
    unet: Any, positions: list[list[int]], queries: list[bool], grid: tuple[int, int]
) -> Iterator[Recorder]:
    """Record the attention of a UNet2DConditionModel in the call inside the block; the processors are put back at its end.

    Args:
        positions: for each row of the call the text positions that count.
        queries: for each row whether self-attention queries are kept.
        grid: (h, w) of the attention modules that are read.
    """
    record = Recorder(positions, queries, grid)
    originals = dict(unet.attn_processors)
    unet.set_attn_processor({name: _Watching(original, record) for name, original in originals.items()})
    try:
        with uncompiled(unet):
            yield record
    finally:
        unet.set_attn_processor(originals)


@contextlib.contextmanager
def capture_sd3(
    transformer: Any, positions: list[list[int]], queries: list[bool], grid: tuple[int, int], blocks: int
) -> Iterator[Recorder]:
    """As :func:`capture_unet`, for the joint attention of an SD3Transformer2DModel.

    Args:
        positions, queries: as there.
        grid: (h, w) of the image tokens.
        blocks: how many of the last blocks are read.
    """
    record = _JointRecorder(positions, queries, grid)
    originals = dict(transformer.attn_processors)
    count = len(transformer.transformer_blocks)
    read = [f"transformer_blocks.{index}.attn.processor" for index in range(count - blocks, count)]
    transformer.set_attn_processor(originals | {name: _Watching(originals[name], record) for name in read})
    try:
        with uncompiled(transformer):
            yield record
    finally:
        transformer.set_attn_processor(originals)
