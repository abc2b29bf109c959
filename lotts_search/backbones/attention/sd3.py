"""Reading the joint attention of Stable Diffusion 3's transformer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from lotts_search.backbones.attention.recorder import Recorder, image_query, normal, split, watched


class SD3Recorder(Recorder):
    """Records image queries over the keys of image and text together."""

    def see(self, attn: Attention, hidden: Tensor, text: Tensor | None, mask: Tensor | None) -> None:
        assert text is not None
        query = image_query(attn, hidden)
        if self._wanted:
            self._queries.append(query[self._wanted])
        image = normal(attn.norm_k, split(attn, attn.to_k(hidden)))
        words = normal(attn.norm_added_k, split(attn, attn.add_k_proj(text)))
        self._read(query, torch.cat([image, words], dim=2), hidden.shape[1])


@contextlib.contextmanager
def capture_sd3(
    transformer: Any, positions: list[list[int]], queries: list[bool], grid: tuple[int, int], blocks: int
) -> Iterator[SD3Recorder]:
    """Record the joint attention of an SD3Transformer2DModel in the call inside the block.

    Args:
        positions, queries: as of :class:`Recorder`.
        grid: (h, w) of the image tokens.
        blocks: how many of the last blocks are read.
    """
    record = SD3Recorder(positions, queries, grid)
    count = len(transformer.transformer_blocks)
    names = [f"transformer_blocks.{index}.attn.processor" for index in range(count - blocks, count)]
    with watched(transformer, names, record):
        yield record
