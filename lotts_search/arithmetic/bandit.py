"""Which trial to run next: expected improvement over the best score, learned within one search.

There are two kinds of trials (LoTTS, appendix G): the outcome of a global one is a new score, the outcome of a local one is
a gain over its parent. What a local trial gains depends on how good its parent already is, and on the parent itself: a mask
that misses the defect misses it every time. So gains are remembered with their parents, and gains of parents with similar
scores count for one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


def expected_improvement(mean: float, sd: float, best: float) -> float:
    """E[max(0, X − best)] of a normal X (Mockus 1975): ``sd·(z·Φ(z) + φ(z))`` with ``z = (mean − best)/sd``."""
    if sd <= 0:
        return max(0.0, mean - best)
    z = (mean - best) / sd
    below = 0.5 * math.erfc(-z / math.sqrt(2))
    return sd * (z * below + math.exp(-z * z / 2) / math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Arm(Generic[T]):
    """A trial that could be next.

    Attributes:
        improvement: expected improvement of the best score.
        cost: above 0, in the same unit for all arms.
        parent: what it refines; None = nothing, it starts from pure noise.
    """

    improvement: float
    cost: float
    parent: T | None = None

    @property
    def rate(self) -> float:
        """Expected improvement per unit of cost."""
        return self.improvement / self.cost


def survivors(initial: int, spent: float) -> int:
    """Return how many of ``initial`` candidates are still refined when the share ``spent``, 0..1, of the budget is spent.

    Successive halving (Jamieson and Talwalkar 2016): halve the survivors at equal shares of the budget; the last two stay,
    so that there is a choice to the end.
    """
    return max(2, initial >> min(int(spent * initial.bit_length()), initial.bit_length()))


@dataclass
class Beliefs:
    """What one search knows about its trials. Scores may be in any unit: the spread of those seen sets the scale.

    Attributes:
        weight: number of trials that the prior counts as; its gain is 0 on average, as uncertain as a new image.
        reach: distance, in spreads, within which the scores of two parents let their gains count for one another.
        samples: scores of new images.
        gains: (parent, its score, gain) of each finished refinement.
        pending: parents of the refinements under way, each counted as if it will gain nothing.
    """

    weight: float = 2.0
    reach: float = 0.5
    samples: list[float] = field(default_factory=list)
    gains: list[tuple[str, float, float]] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    @property
    def spread(self) -> float:
        """Standard deviation of the scores of new images; with fewer than two, that of all gains around 0."""
        if len(self.samples) > 1:
            return float(np.std(self.samples, ddof=1))
        return math.sqrt(sum(gain**2 for _, _, gain in self.gains) / len(self.gains)) if self.gains else 0.0

    def sample(self, best: float) -> float:
        """Return the expected improvement by a new image, whose score is normal with the mean and the spread of those
        seen, wider while these are few. Infinite without any of them, or without a spread."""
        count, spread = len(self.samples), self.spread
        if not count or spread == 0:
            return math.inf
        return expected_improvement(float(np.mean(self.samples)), spread * math.sqrt(1 + 1 / count), best)

    def refined_sample(self, best: float) -> float:
        """Return the expected improvement by a new image that is refined once."""
        count, spread = len(self.samples), self.spread
        if not count or spread == 0:
            return math.inf
        mean = float(np.mean(self.samples))
        weights, gains = self._like("", mean)
        total = self.weight + sum(weights)
        gain = sum(w * g for w, g in zip(weights, gains, strict=True)) / total
        square = self.weight * spread**2 + sum(w * (g - gain) ** 2 for w, g in zip(weights, gains, strict=True))
        return expected_improvement(mean + gain, math.sqrt(spread**2 * (1 + 1 / count) + square / total), best)

    def refine(self, parent: str, score: float, best: float) -> float:
        """Return the expected improvement by a refinement: the weighted mean over the prior and the remembered gains."""
        spread = self.spread
        if spread == 0:
            return math.inf
        weights, gains = self._like(parent, score)
        found = self.weight * expected_improvement(score, spread, best)
        found += sum(w * max(0.0, score + g - best) for w, g in zip(weights, gains, strict=True))
        return found / (self.weight + sum(weights) + self.pending.count(parent))

    def _like(self, parent: str, score: float) -> tuple[Sequence[float], Sequence[float]]:
        """Return the weights of the remembered gains, and the gains. The parent's own gains weigh 1, others the less the
        more the scores of the parents differ."""
        width = max(self.reach * self.spread, 1e-12)
        weights = [1.0 if key == parent else math.exp(-(((s - score) / width) ** 2) / 2) for key, s, _ in self.gains]
        return weights, [gain for _, _, gain in self.gains]
