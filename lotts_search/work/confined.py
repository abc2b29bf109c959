"""Compute confined to the mask of a refinement: for which tokens, in which network calls and for what share of the cost.

Prices and engine share this arithmetic, so a plan says what the ledger will be charged. The number of active tokens depends
only on the number of tokens in the mask, not on its shape, so it is known before the mask is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lotts_search.errors import BadInput

FAMILIES = ("flux", "stable-diffusion-3", "stable-diffusion", "stable-diffusion-xl")
"""Families of models whose networks can be confined."""
EVERY = 2
"""``refresh`` where it is not chosen: every second masked step of a refinement is whole."""
PAYS = 1024
"""Tokens from which steps are confined without being asked: with fewer, gathering them takes longer than it saves
(docs/results/masked.md)."""
BUCKETS = 16
"""Numbers of active tokens are multiples of this part of all tokens, so that few shapes of network calls occur."""


@dataclass(frozen=True)
class Confined:
    """How the network calls of a refinement are confined to its active tokens, those of the mask and of a ring around it.

    The calls of a segment are counted from 0. A *dense* call computes everything; the next confined calls take the keys
    and values of the frozen tokens from it.

    Attributes:
        refresh: after the first ones every ``refresh``-th call is dense; 1 = all.
        warmup: number of dense calls at the beginning, 1 or more.
        active: number of active tokens.
        tokens: number of all tokens.
        share: cost of a confined call as a share of a dense one.
    """

    refresh: int
    warmup: int
    active: int
    tokens: int
    share: float

    def dense(self, call: int) -> bool:
        """Return whether a call is dense."""
        return call < self.warmup or (call - self.warmup + 1) % self.refresh == 0

    def count(self, calls: int) -> int:
        """Return how many of the first ``calls`` calls are confined."""
        return sum(not self.dense(call) for call in range(calls))


def check_confined(refresh: int, warmup: int, ring: int) -> None:
    """Refuse settings of confined compute out of their range.

    Raises:
        BadInput: see above.
    """
    for name, value, least in (("refresh", refresh, 1), ("warmup", warmup, 1), ("ring", ring, 0)):
        if value < least:
            raise BadInput(f"{name} must be {least} or more, not {value}")


def active_count(masked: int, tokens: int, ring: int) -> int:
    """Return the number of active tokens: those of the mask, as many as lie within ``ring`` tokens around a square of that
    size, and up to the next multiple of a bucket."""
    side = math.ceil(math.sqrt(masked))
    wanted = min(tokens, masked + (side + 2 * ring) ** 2 - side**2)
    return -(-tokens * -(-wanted * BUCKETS // tokens) // BUCKETS)


def in_tokens(mask: npt.NDArray[np.bool_], side: int) -> npt.NDArray[np.bool_]:
    """Return the tokens [H/side, W/side] that a mask [H, W] on the latent touches."""
    height, width = mask.shape
    touched: npt.NDArray[np.bool_] = np.logical_or.reduce(
        mask.reshape(height // side, side, width // side, side), axis=(1, 3)
    )
    return touched


def active_tokens(mask: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    """Return the ``count`` active tokens [h, w] of a mask of tokens [h, w]: its own and those next to it, the nearest first
    and of equally near ones those with the most active neighbours."""
    active, left = mask.copy(), count - int(mask.sum())
    while left > 0:
        padded = np.pad(active, 1).astype(int)
        across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        neighbours = np.where(active, 0, across[:-2] + across[1:-1] + across[2:])
        best = np.argsort(-neighbours.ravel(), kind="stable")[: min(left, np.count_nonzero(neighbours))]
        active.ravel()[best] = True
        left -= len(best)
    return active
