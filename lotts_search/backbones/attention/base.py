"""The optional abilities of a backbone that masks by attention need, and the attention of a network row."""

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
            tokens, heads and layers; [P, h, w] where the words of P prompts were read at once.
        queries: one tensor [heads, h·w, d] for each self-attention layer at the grid, if queries were requested.
    """

    words: Tensor
    queries: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> RowAttention:
        """Return it on a device: layers of a network may be on several."""
        return RowAttention(self.words.to(device), tuple(layer.to(device) for layer in self.queries))


@runtime_checkable
class ReadsAttention(Protocol):
    """Attention of the image to the text can be read, for :class:`~lotts_search.work.masks.AttentionMask`."""

    first_token: int
    """Position of the first word's token in the text sequence."""

    def tokens(self, prompt: str) -> list[int]:
        """Return the token ids of the prompt's words in order, without BOS, EOS and padding, truncated as the encoder
        truncates them."""

    def grids(self) -> dict[int, tuple[int, int]]:
        """Return the attention grids (h, w) that can be read, by their shorter side."""

    def attend(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Any,
        positions: list[list[int]],
        queries: list[bool],
        grid: tuple[int, int],
    ) -> list[RowAttention]:
        """Call the network once and return its attention at ``grid``, one entry per row.

        Args:
            latents, timesteps, conditioning: as of :meth:`~lotts_search.backbones.base.Backbone.predict`.
            positions: for each row the text positions that count.
            queries: for each row whether its self-attention queries are kept.
            grid: one of :meth:`grids`.
        """


@dataclass(frozen=True)
class Concept:
    """A prompt whose words run beside the image.

    Attributes:
        conditioning: of the prompt, from :meth:`~lotts_search.backbones.base.Backbone.encode_prompts`.
        tokens: text positions of its words.
        read: indices of the ``tokens`` that count for its map.
    """

    conditioning: Any
    tokens: list[int]
    read: list[int]


@runtime_checkable
class ReadsConcepts(Protocol):
    """Maps of concepts can be read, for :class:`~lotts_search.work.masks.ConceptMask`."""

    first_token: int
    """Position of the first word's token in the text sequence."""

    def tokens(self, prompt: str) -> list[int]:
        """As of :class:`ReadsAttention`."""

    def concept_grid(self) -> tuple[int, int]:
        """Return (h, w) of the image tokens."""

    def concept_blocks(self, wanted: int | None) -> int:
        """Return how many blocks are read: ``wanted``, or the default for None.

        Raises:
            BadInput: the network has fewer blocks.
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
        """Call the network once and return the maps of concepts, one entry per row.

        Args:
            latents, timesteps, conditioning: as of :meth:`~lotts_search.backbones.base.Backbone.predict`.
            concepts: for each row the same number P of prompts.
            queries: for each row whether its image queries are kept.
            blocks: how many of the last blocks are read.
        """


MOST_PROBABILITIES = 2**27
"""Most attention probabilities in memory at once, 512 MiB in float32, where no kernel avoids them; the scores that they
are computed from take as much again. Beyond this number heads are computed in turn."""


def attention_map(query: Tensor, key: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute ``softmax(Q Kᵀ/√d)·weights`` without keeping the probabilities: attention with ``weights`` as values.

    Args:
        query: [B, heads, N, d].
        key: [B, heads, M, d].
        weights: [B, M, V] for V maps.
        mask: additive, broadcastable to [B, heads, N, M].

    Returns:
        [B, N, V] float32, averaged over heads.
    """
    (batch, heads, count, _), (*_, maps) = query.shape, weights.shape
    values = weights.float()[:, None]
    if query.is_cuda:
        # The CUDA kernels that keep no probabilities need the width of the values to be a multiple of 8.
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
