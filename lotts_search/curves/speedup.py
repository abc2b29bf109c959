"""Speed-up to reach a quality: the cost of one strategy over the cost of another at equal held-out quality."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lotts_search.curves.bootstrap import RESAMPLES, percentile_interval, resampling_weights
from lotts_search.curves.intervals import Doubles
from lotts_search.curves.panel import Panel, common

ROUNDING = 1e-9
"""A quality that is missed by so little is reached."""


@dataclass(frozen=True)
class SpeedUp:
    """How many times less the fast strategy costs than the slow one at equal quality.

    Attributes:
        ratio: cost of the slow one over cost of the fast one; infinite where the slow one never gets there, NaN where
            the fast one does not.
        low, high: 95 % bootstrap interval over prompts; ``high`` is infinite where the slow one falls short in more
            replicates than the interval leaves out.
        quality: the quality that both are to reach.
        slow, fast: what that costs each, infinite where it is out of reach.
        limit: the ratio at all that the slow one spent: what is known at least where the quality is out of its reach.
        reached: share of the replicates in which the slow one reaches the quality.
    """

    ratio: float
    low: float
    high: float
    quality: float
    slow: float
    fast: float
    limit: float
    reached: float

    def __str__(self) -> str:
        if math.isnan(self.ratio):
            return "out of reach of the fast one"
        if math.isinf(self.ratio):
            return f"more than {min(self.limit, self.low):.2f}×: out of reach of the slow one"
        high = f"{self.high:.2f}" if math.isfinite(self.high) else f"> {self.limit:.2f}"
        return f"{self.ratio:.2f}× [{self.low:.2f}, {high}]"


def cost_to_reach(x: Doubles, curves: Doubles, quality: Doubles) -> Doubles:
    """The least cost at which each curve reaches its quality, linear between the points of the curve.

    Args:
        x: [g] costs, ascending.
        curves: [b, g].
        quality: [b].

    Returns:
        [b]; ``x[0]`` where the first point has it already, infinite where no point has it.
    """
    reached = curves >= quality[:, None] - ROUNDING
    first = reached.argmax(axis=1)
    rows, before = np.arange(len(curves)), np.maximum(first - 1, 0)
    y0, y1 = curves[rows, before], curves[rows, first]
    rise = np.where(y1 > y0, y1 - y0, 1.0)
    share = np.where(first > 0, np.clip((quality - y0) / rise, 0.0, 1.0), 0.0)
    cost = x[before] + share * (x[first] - x[before])
    return np.where(reached.any(axis=1), cost, np.inf)


def speed_up(
    slow: Panel, fast: Panel, quality: float | None = None, *, confidence: float = 0.95, resamples: int = RESAMPLES
) -> SpeedUp:
    """Cost of ``slow`` over cost of ``fast`` at equal quality, over the prompts that both have.

    Args:
        slow, fast: over the same cost and of the same value.
        quality: what both are to reach. None = the mean that the fast one ends with, at all that it spent: the paper's
            "images that Best-of-N needs for LoTTS's quality". It is drawn again with the prompts, as all else is.

    Raises:
        ValueError: the two are over different costs or of different values.
        BadInput: no prompt in common.
    """
    if (slow.over, slow.of) != (fast.over, fast.of):
        raise ValueError(f"cannot compare {slow.of} over {slow.over} with {fast.of} over {fast.over}")
    slow, fast = common(slow, fast)
    count = len(slow.prompts)
    # The estimate itself is the first replicate: all prompts alike.
    weights = np.concatenate([np.full((1, count), 1 / count), resampling_weights(count, resamples)])
    curves = weights @ fast.y
    if quality is None:
        wanted, fast_cost = curves[:, -1], weights @ fast.spent
    else:
        wanted = np.full(len(weights), quality)
        fast_cost = cost_to_reach(fast.x, curves, wanted)
    slow_cost = cost_to_reach(slow.x, weights @ slow.y, wanted)
    with np.errstate(invalid="ignore"):
        ratio = slow_cost / fast_cost  # infinite over infinite is NaN: neither gets there
    told = ratio[1:][~np.isnan(ratio[1:])]
    low, high = percentile_interval(told, count, confidence) if told.size else (np.nan, np.nan)
    return SpeedUp(
        ratio=float(ratio[0]) if math.isfinite(fast_cost[0]) else math.nan,
        low=float(low),
        high=float(high),
        quality=float(wanted[0]),
        slow=float(slow_cost[0]),
        fast=float(fast_cost[0]),
        limit=float(slow.x[-1] / fast_cost[0]),
        reached=float(np.isfinite(slow_cost[1:]).mean()) if resamples else math.nan,
    )
