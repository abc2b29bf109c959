"""What localization by attention needs of any family: attention of single rows, and the interface that gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.nn import functional

from lotts_search.backbones.base import Backbone


@dataclass(frozen=True)
class RowAttention:
    """The attention of one network row at one grid [h, w].

    Attributes:
        words: [h, w] float32, attention probability of the image positions to the chosen text tokens, averaged over
            tokens, heads and layers.
        queries: one tensor [heads, h*w, d] for each self-attention layer at the grid, if they were asked for.
    """

    words: Tensor
    queries: tuple[Tensor, ...] = ()


class Attentive(Backbone, Protocol):
    """A backbone whose attention can be read: what :class:`~lotts_search.masks.AttentionMask` needs of a family."""

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
    values = weights.float()[:, None].expand(-1, query.shape[1], -1, -1)
    mask = None if mask is None else mask.float()
    out = functional.scaled_dot_product_attention(query.float(), key.float(), values, attn_mask=mask)
    return out.mean(1)
