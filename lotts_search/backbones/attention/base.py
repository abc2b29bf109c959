"""What localization by attention needs of any family: attention of single rows, and the interface that gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RowAttention:
    """The attention of one network row at one grid [h, w].

    Attributes:
        words: [h, w] float32, attention probability of the image positions to the chosen text tokens, averaged over
            tokens, heads and layers; [P, h, w] float32 where the words of P prompts were read at once.
        queries: one tensor [heads, h*w, d] for each self-attention layer at the grid, if they were asked for.
    """

    words: Tensor
    queries: tuple[Tensor, ...] = ()


@runtime_checkable
class ReadsAttention(Protocol):
    """A backbone whose attention can be read: what :class:`~lotts_search.work.masks.AttentionMask` needs of a family."""

    first_token: int
    """Position of the first word's token in the text sequence."""

    def tokens(self, prompt: str) -> list[int]:
        """Token ids of the prompt's words in order, without BOS, EOS and padding, cut as the encoder cuts them."""

    def grids(self) -> dict[int, tuple[int, int]]:
        """The attention grids (h, w) that can be read, by their shorter side."""

    def attend(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Any,
        positions: list[list[int]],
        queries: list[bool],
        grid: tuple[int, int],
    ) -> list[RowAttention]:
        """One network call [B, C, H, W] with its attention at ``grid``, one entry a row.

        Args:
            latents, timesteps, conditioning: as of :meth:`Backbone.predict`.
            positions: for each row the text positions that count.
            queries: for each row whether its self-attention queries are kept.
            grid: one of :meth:`grids`.
        """


@dataclass(frozen=True)
class Concept:
    """A prompt whose words run beside the image.

    Attributes:
        conditioning: of the prompt, as :meth:`Backbone.encode_prompts` gives it.
        tokens: text positions of its words.
        read: which of ``tokens``, by index, count for its map.
    """

    conditioning: Any
    tokens: list[int]
    read: list[int]


@runtime_checkable
class ReadsConcepts(Protocol):
    """A backbone that gives maps of concepts: what :class:`~lotts_search.work.masks.ConceptMask` needs of a family."""

    first_token: int
    """Position of the first word's token in the text sequence."""

    def tokens(self, prompt: str) -> list[int]:
        """As of :class:`ReadsAttention`."""

    def concept_grid(self) -> tuple[int, int]:
        """(h, w) of the image tokens."""

    def concept_blocks(self, wanted: int | None) -> int:
        """How many blocks are read, by default or as wanted.

        Raises:
            BadInput: there are not so many.
        """

    def attend_concepts(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Any,
        concepts: list[list[Concept]],
        queries: list[bool],
        blocks: int,
    ) -> list[RowAttention]:
        """One network call [B, C, H, W] with the maps of concepts, one entry a row.

        Args:
            latents, timesteps, conditioning: as of :meth:`Backbone.predict`.
            concepts: for each row the same number P of prompts.
            queries: for each row whether its image queries are kept.
            blocks: how many of the last blocks are read.
        """


MOST_PROBABILITIES = 2**27
"""Attention probabilities that exist at once, 512 MiB in float32, where no kernel does without them; the scores that
they come from take as much again. Heads take turns where all together would be more."""


def attention_map(query: Tensor, key: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """``softmax(Q Kᵀ/√d)·weights`` without keeping the probabilities: attention with ``weights`` as its values.

    Args:
        query: [B, heads, N, d].
        key: [B, heads, M, d].
        weights: [B, M, V], V maps at once.
        mask: additive, broadcastable to [B, heads, N, M].

    Returns:
        [B, N, V] float32, averaged over heads.
    """
    (batch, heads, count, _), (*_, maps) = query.shape, weights.shape
    values = weights.float()[:, None]
    if query.is_cuda:
        # Its kernels that keep no probabilities want widths of values that are multiples of 8.
        values = functional.pad(values, (0, -maps % 8))
    mask = None if mask is None else mask.float()
    together = max(1, min(heads, MOST_PROBABILITIES // (batch * count * key.shape[2])))
    total = torch.zeros((), device=query.device)
    for first in range(0, heads, together):
        some = slice(first, first + together)
        q, k = query[:, some].float(), key[:, some].float()
        part = None if mask is None or mask.shape[1] == 1 else mask[:, some]
        out = functional.scaled_dot_product_attention(
            q, k, values.expand(-1, q.shape[1], -1, -1), attn_mask=mask if part is None else part
        )
        if q.shape[1] == heads:
            return out[..., :maps].mean(1)
        total = total + out[..., :maps].sum(1)
    return total / heads
