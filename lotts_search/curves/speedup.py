"""Speed-up: the ratio of the costs at which two strategies reach the same quality."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lotts_search.curves.bootstrap import RESAMPLES, percentile_interval, resampling_weights
from lotts_search.curves.intervals import Doubles
from lotts_search.curves.panel import Panel, common

ROUNDING = 1e-9
"""A curve that misses a quality by at most this much has reached it."""


@dataclass(frozen=True)
class SpeedUp:
    """How many times less the fast one (a strategy) costs than the slow one (its baseline) at equal quality.

    Attributes:
        ratio: cost of the slow strategy divided by cost of the fast one; infinite where the slow one never reaches the
            quality, NaN where the fast one does not.
        low, high: 95 % bootstrap interval over prompts; ``high`` is infinite where the slow strategy misses the quality
            in more replicates than the interval leaves out.
        quality: the quality that both should reach.
        slow, fast: the cost of each to reach it, infinite where it never does.
        limit: the ratio at the highest cost of the slow strategy, a lower bound where the quality is out of its reach.
        reached: share of the replicates in which the slow strategy reaches the quality.
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
            return "the strategy does not reach this quality"
        if math.isinf(self.ratio):
            least = min(self.limit, self.low)
            bound = f"more than {least:.2f}×: " if least >= 1 else ""  # a bound below 1 says nothing about the lead
            return f"{bound}the baseline does not reach this quality"
        high = f"{self.high:.2f}" if math.isfinite(self.high) else f"> {self.limit:.2f}"
        return f"{self.ratio:.2f}× [{self.low:.2f}, {high}]"


def cost_to_reach(x: Doubles, curves: Doubles, quality: Doubles) -> Doubles:
    """Return the lowest cost at which each curve reaches its quality, by linear interpolation between its points.

    Args:
        x: [g] costs, ascending.
        curves: [b, g] qualities at these costs.
        quality: [b] quality to reach.

    Returns:
        [b] costs: ``x[0]`` where the first point reaches the quality, infinite where no point does.
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
    """Return the cost of ``slow`` divided by the cost of ``fast`` at equal quality, over the prompts that they share.

    Args:
        slow, fast: panels over the same cost and of the same value.
        quality: the quality that both should reach. None = the mean final quality of the fast one at its total cost:
            the paper's "images that Best-of-N needs for LoTTS's quality". It then varies with the bootstrap replicate.

    Raises:
        ValueError: the two panels have different costs or different values.
        BadInput: they have no prompt in common.
    """
    if (slow.over, slow.of) != (fast.over, fast.of):
        raise ValueError(f"cannot compare {slow.of} over {slow.over} with {fast.of} over {fast.over}")
    slow, fast = common(slow, fast)
    count = len(slow.prompts)
    # The first replicate is the estimate itself: equal weights for all prompts.
    weights = np.concatenate([np.full((1, count), 1 / count), resampling_weights(count, resamples)])
    curves = weights @ fast.y
    if quality is None:
        wanted, fast_cost = curves[:, -1], weights @ fast.spent
    else:
        wanted = np.full(len(weights), quality)
        fast_cost = cost_to_reach(fast.x, curves, wanted)
    slow_cost = cost_to_reach(slow.x, weights @ slow.y, wanted)
    with np.errstate(invalid="ignore"):
        ratio = slow_cost / fast_cost  # NaN where neither reaches the quality
        limit = float(slow.x[-1] / fast_cost[0])
    known = ratio[1:][~np.isnan(ratio[1:])]
    low, high = percentile_interval(known, count, confidence) if known.size else (np.nan, np.nan)
    return SpeedUp(
        ratio=float(ratio[0]) if math.isfinite(fast_cost[0]) else math.nan,
        low=float(low),
        high=float(high),
        quality=float(wanted[0]),
        slow=float(slow_cost[0]),
        fast=float(fast_cost[0]),
        limit=limit,
        reached=float(np.isfinite(slow_cost[1:]).mean()) if resamples else math.nan,
    )
