"""The limit of a scaling curve: the fit q(n) = q∞ − c·n^−γ, with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lotts_search.curves.bootstrap import RESAMPLES, percentile_interval, resampling_weights
from lotts_search.curves.intervals import Doubles, Interval
from lotts_search.curves.panel import Panel

RATES = np.geomspace(0.02, 4.0, 300)
"""The candidate values of γ, 1.8 % apart."""
POINTS = 24
"""The largest number of points that the fit uses."""


@dataclass(frozen=True)
class Saturation:
    """A curve q(n) = q∞ − c·n^−γ, where n is the cost divided by the first cost.

    Attributes:
        limit: q∞, the quality at unlimited cost.
        rate: γ, how fast the curve approaches q∞.
        reach: c, the distance to q∞ at the first cost.
        unit: the first cost.
        error: root mean square of the residuals.
        settled: whether the data identify q∞. False where γ falls to its smallest candidate in more than 5 % of the
            replicates: the curve still rises like a logarithm.
    """

    limit: Interval
    rate: Interval
    reach: float
    unit: float
    error: float
    settled: bool

    def at(self, cost: Doubles | float) -> Doubles:
        """Return the fitted quality at a cost."""
        return np.asarray(self.limit.mean - self.reach * (np.asarray(cost) / self.unit) ** -self.rate.mean)

    def cost(self, quality: float) -> float:
        """Return the cost at which the fit reaches a quality; infinite at q∞ and above."""
        missing = self.limit.mean - quality
        if missing <= 0:
            return math.inf
        return float(self.unit * max(self.reach / missing, 0.0) ** (1 / self.rate.mean))


def fit(panel: Panel, *, confidence: float = 0.95, resamples: int = RESAMPLES) -> Saturation:
    """Fit by least squares at up to 24 costs, evenly spaced in their logarithm; intervals by bootstrap over prompts.

    For a fixed γ the fit is linear in q∞ and c, so each γ is tried for all replicates at once (variable projection).

    Raises:
        ValueError: the curve has fewer than four points.
    """
    if panel.x.size < 4:
        raise ValueError("a saturation fit needs a curve of at least four points")
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
