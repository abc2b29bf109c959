"""Which trial to do next: expected improvement over the best score, learned within one search. Pure arithmetic.

Trials are of two sorts: global ones, whose outcome is a new score, and local ones, whose outcome is a gain
on their parent. What a local trial gains depends on how good its parent is already, and on the parent itself: a mask that
misses the defect misses it every time. So gains are remembered with their parents, and those of parents with like scores
count for one another.
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
        nfe: cost, above 0.
        parent: what it refines; None = nothing, it starts from pure noise.
    """

    improvement: float
    nfe: float
    parent: T | None = None

    @property
    def rate(self) -> float:
        """Expected improvement per NFE."""
        return self.improvement / self.nfe


def survivors(initial: int, spent: float) -> int:
    """How many candidates of ``initial`` are still in the race when the share ``spent``, 0..1, of the budget is gone.

    Successive halving (Jamieson and Talwalkar 2016): ever half as many, each number for an equal share of the budget; the
    last two stay, so that there is a choice to the end.
    """
    return max(2, initial >> min(int(spent * initial.bit_length()), initial.bit_length()))


@dataclass
class Beliefs:
    """What one search knows about its trials. All scores may be in any unit: the spread of those seen sets the scale.

    Attributes:
        weight: how many trials the prior counts as: a gain of 0 on average, as uncertain as a new image.
        reach: how near, in spreads, the scores of two parents must be for their gains to count for one another.
        samples: scores of new images.
        gains: (parent, its score, gain) of each finished refinement.
        pending: parents of the refinements under way, each counted as if it will bring nothing.
    """

    weight: float = 2.0
    reach: float = 0.5
    samples: list[float] = field(default_factory=list)
    gains: list[tuple[str, float, float]] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    @property
    def spread(self) -> float:
        """Standard deviation of the scores of new images; while there is one only, of all gains around 0."""
        if len(self.samples) > 1:
            return float(np.std(self.samples, ddof=1))
        return math.sqrt(sum(gain**2 for _, _, gain in self.gains) / len(self.gains)) if self.gains else 0.0

    def sample(self, best: float) -> float:
        """Expected improvement of a new image: a normal law with the mean and, wider for few of them, the spread of
        those seen. Without any, or without a scale, infinite."""
        count, spread = len(self.samples), self.spread
        if not count or spread == 0:
            return math.inf
        return expected_improvement(float(np.mean(self.samples)), spread * math.sqrt(1 + 1 / count), best)

    def refined_sample(self, best: float) -> float:
        """Expected improvement of a new image that is refined once."""
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
        """Expected improvement of a refinement: the mean over the prior and the gains remembered, each by its weight."""
        spread = self.spread
        if spread == 0:
            return math.inf
        weights, gains = self._like(parent, score)
        found = self.weight * expected_improvement(score, spread, best)
        found += sum(w * max(0.0, score + g - best) for w, g in zip(weights, gains, strict=True))
        return found / (self.weight + sum(weights) + self.pending.count(parent))

    def _like(self, parent: str, score: float) -> tuple[Sequence[float], Sequence[float]]:
        """The gains remembered and their weights: 1 for the parent's own, less the less its score is like another's."""
        width = max(self.reach * self.spread, 1e-12)
        weights = [1.0 if key == parent else math.exp(-(((s - score) / width) ** 2) / 2) for key, s, _ in self.gains]
        return weights, [gain for _, _, gain in self.gains]
