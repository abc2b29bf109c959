"""Whether a search over-optimizes its verifier: more compute raises the guiding score, and a held-out value falls.

Gao et al. 2023, "Scaling laws for reward model overoptimization", show such curves for language models, and Ma et al. 2025,
"Inference-time scaling for diffusion models beyond scaling denoising steps", for image verifiers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lotts_search.curves.intervals import Doubles, Interval
from lotts_search.curves.panel import Panel, common, mean_interval


@dataclass(frozen=True)
class Tradeoff:
    """The held-out value of the returned images against their guiding score, along a curve over compute.

    Attributes:
        of, over: names of the held-out value and of the cost.
        cost: [g] costs, ascending.
        score, value: [g] mean guiding score and mean held-out value at these costs.
        peak: index of the highest mean value.
        after: change of the held-out value from its peak to the highest cost, paired by prompt. So that the choice of
            the peak does not bias it, each half of the prompts uses the peak of the other half.
        gained: change of the guiding score over the same part of the curve.
    """

    of: str
    over: str
    cost: Doubles
    score: Doubles
    value: Doubles
    peak: int
    after: Interval
    gained: Interval

    @property
    def overoptimized(self) -> bool:
        """Whether the held-out value falls after its peak (the whole interval is below zero) while the score rises."""
        return self.after.high < 0 and self.gained.low > 0


def tradeoff(score: Panel, value: Panel) -> Tradeoff:
    """Compare the panels of the guiding score and of a held-out value over the same costs.

    Raises:
        BadInput: the two have no prompt in common.
    """
    score, value = common(score, value)
    cost = np.intersect1d(score.x, value.x)
    s, v = (panel.y[:, np.searchsorted(panel.x, cost)] for panel in (score, value))
    first = np.arange(len(v)) % 2 == 0
    peaks = np.empty(len(v), dtype=np.int64)
    for half in (first, ~first):
        other = ~half if (~half).any() else half
        peaks[half] = int(v[other].mean(axis=0).argmax())
    rows = np.arange(len(v))
    after, gained = (mean_interval(y[:, -1] - y[rows, peaks]) for y in (v, s))
    mean = v.mean(axis=0)
    return Tradeoff(value.of, value.over, cost, s.mean(axis=0), mean, int(mean.argmax()), after, gained)
