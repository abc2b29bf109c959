"""Where a scaling curve is going: the fit q(n) = q∞ − c·n^−γ, with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lotts_search.curves.bootstrap import RESAMPLES, percentile_interval, resampling_weights
from lotts_search.curves.intervals import Doubles, Interval
from lotts_search.curves.panel import Panel

RATES = np.geomspace(0.02, 4.0, 300)
"""The values of γ that are tried, 1.8 % apart."""
POINTS = 24


@dataclass(frozen=True)
class Saturation:
    """A curve q(n) = q∞ − c·n^−γ, n being its cost over its first cost.

    Attributes:
        limit: q∞, the quality at boundless cost.
        rate: γ, how fast it is approached.
        reach: c, what is missing at the first cost.
        unit: the first cost.
        error: root mean square of what the fit misses.
        settled: whether the data tell q∞: False where γ runs to its least value in more than one replicate of twenty,
            that is where the curve still rises like a logarithm.
    """

    limit: Interval
    rate: Interval
    reach: float
    unit: float
    error: float
    settled: bool

    def at(self, cost: Doubles | float) -> Doubles:
        """The quality that the fit gives at a cost."""
        return np.asarray(self.limit.mean - self.reach * (np.asarray(cost) / self.unit) ** -self.rate.mean)

    def cost(self, quality: float) -> float:
        """The cost at which the fit reaches a quality; infinite beyond q∞."""
        missing = self.limit.mean - quality
        if missing <= 0:
            return math.inf
        return float(self.unit * max(self.reach / missing, 0.0) ** (1 / self.rate.mean))


def fit(panel: Panel, *, confidence: float = 0.95, resamples: int = RESAMPLES) -> Saturation:
    """Least squares at up to 24 costs spread evenly over the logarithm; intervals by the bootstrap over prompts.

    For each γ the fit is linear in q∞ and c, so every γ is tried for all replicates at once (variable projection).

    Raises:
        ValueError: the curve has fewer than four points.
    """
    if panel.x.size < 4:
        raise ValueError("a saturation fit needs a curve of four points at least")
    picked = np.unique(np.searchsorted(panel.x, np.geomspace(panel.x[0], panel.x[-1], POINTS) * (1 - 1e-12)))
    x, count = panel.x[picked] / panel.x[0], len(panel.prompts)
    weights = np.concatenate([np.full((1, count), 1 / count), resampling_weights(count, resamples)])
    curves = weights @ panel.y[:, picked]
    lost = np.empty((len(RATES), len(curves)))
    found = np.empty((len(RATES), len(curves), 2))
    for i, rate in enumerate(RATES):
        q, r = np.linalg.qr(np.stack([np.ones_like(x), -(x**-rate)], axis=1))
        inside = curves @ q
        found[i] = np.linalg.solve(r, inside.T).T
        lost[i] = ((curves - inside @ q.T) ** 2).sum(axis=1)
    best = lost.argmin(axis=0)
    limit, reach = found[best, np.arange(len(curves))].T
    rates = RATES[best]
    return Saturation(
        limit=_interval(limit, count, confidence),
        rate=_interval(rates, count, confidence),
        reach=float(reach[0]),
        unit=float(panel.x[0]),
        error=float(np.sqrt(lost[best[0], 0] / len(x))),
        settled=bool((best[1:] == 0).mean() <= 0.05 and best[0] > 0),
    )


def _interval(values: Doubles, count: int, confidence: float) -> Interval:
    low, high = percentile_interval(values[1:], count, confidence)
    return Interval(float(values[0]), float(low), float(high))
