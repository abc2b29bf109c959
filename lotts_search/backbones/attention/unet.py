"""Reading cross-attention and self-attention of a U-Net."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor

from lotts_search.backbones.attention.recorder import Recorder, image_query, normal, split, watched


def unet_grids(unet: Any, latent: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """Return the grids (h, w) at which a U-Net has cross-attention, by their shorter side, for latents [H, W]."""
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


class UNetRecorder(Recorder):
    """Records the words of cross-attention and the queries of self-attention, of all layers at the grid."""

    def see(self, attn: Attention, hidden: Tensor, text: Tensor | None, mask: Tensor | None) -> None:
        if hidden.ndim != 3 or hidden.shape[1] != self.grid[0] * self.grid[1]:
            return
        if text is not None:
            self._see_words(attn, hidden, text, mask)
        elif self._wanted:
            self._queries.append(image_query(attn, hidden[self._wanted]))

    def _see_words(self, attn: Attention, hidden: Tensor, text: Tensor, mask: Tensor | None) -> None:
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        key = normal(attn.norm_k, split(attn, attn.to_k(text)))
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, text.shape[1], len(text))
            mask = mask.view(len(text), attn.heads, -1, mask.shape[-1])
        self._read(image_query(attn, hidden), key, 0, mask)


@contextlib.contextmanager
def capture_unet(
    unet: Any, positions: list[list[int]], queries: list[bool], grid: tuple[int, int]
) -> Iterator[UNetRecorder]:
    """Record the attention of a UNet2DConditionModel in the call inside the block; arguments as of :class:`Recorder`."""
    record = UNetRecorder(positions, queries, grid)
    with watched(unet, unet.attn_processors, record):
        yield record
