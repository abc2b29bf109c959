"""Sequential Monte Carlo: weights of particles under the potentials of Feynman-Kac steering, and resampling schemes.

Source: Singhal et al. 2025, "A general framework for inference-time scaling and steering of diffusion models" (FK
steering). A trajectory is scored at checkpoints k = 1..n and, complete, at the end. With strength λ and score ``r_k``
the potential ``G_k`` at a checkpoint is

    diff  exp λ(r_k − r_{k−1}), r_0 = 0        max  exp λ·max(r_1..r_k)
    add   exp λ(r_1 + … + r_k)                 rt   exp λ·r_k

and at the end the potential that makes the product of all of them ``exp λ·r``, so that all kinds weigh complete
trajectories alike. All arithmetic is in logarithms: scores may have any sign and size, and a constant added to all of them
changes only the evidence. Scores of other verifiers have other sizes, so λ may be given per :func:`spread` of the scores.

Tempering replaces λ at a checkpoint by ``λ·τ`` with ``τ = min(1, (1 + γ)^(100·s) − 1)`` at the share s of the schedule:
the gradient-free part of DAS (Kim et al. 2025, "Test-time alignment of diffusion models without reward
over-optimization"), which trusts early predictions less. λ may also be lowered where the scores differ so much that too few
particles would keep a weight: the adaptive temperature of Su et al. 2025 ("Navigating the exploration-exploitation tradeoff in
inference-time scaling of diffusion models", arXiv 2508.12361), chosen by the effective sample size as in Jasra et al. 2011.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Doubles: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.intp]
Potential: TypeAlias = Literal["diff", "max", "add", "rt"]
Scheme: TypeAlias = Literal["systematic", "multinomial", "residual", "fleming-viot"]
TEMPERATURES = np.linspace(0, 1, 257) ** 2
"""Shares of λ that are tried where it may be lowered, denser towards 0."""


class Weights:
    """Log-weights of K particles from checkpoint to checkpoint.

    Args:
        strength: λ; per score, or if ``relative`` per spread of the first scores that it weighs. Where these are all the
            same, λ is 0: nothing is selected.

    Attributes:
        log: [K] logarithms of the weights since the last resampling, not normalised.
        log_evidence: logarithm of the estimated mean of ``exp λ·r`` up to the last resampling; ``log`` holds the rest.
    """

    def __init__(
        self,
        count: int,
        potential: Potential = "max",
        strength: float = 10.0,
        temper: float = 0.0,
        relative: bool = False,
    ):
        self._potential = potential
        self._strength = strength
        self._relative = relative
        self._temper = temper
        self.log = np.zeros(count)
        self.log_evidence = 0.0
        self._product = np.zeros(count)  # logarithms of the products of all potentials so far, along each ancestry
        self._highest, self._sum = np.full(count, -np.inf), np.zeros(count)
        self._ancestors = np.arange(count)

    def weigh(self, scores: Sequence[float], share: float, ess: float = 0.0) -> None:
        """Multiply by the potentials of a checkpoint at this ``share`` of the schedule, 0..1; scores [K].

        Args:
            ess: lower λ at this checkpoint so that the effective sample size stays at this share of K, 0..1, or as near to it as
                the weights so far allow.
        """
        r = self._measured(scores)
        strength = self._strength * temperature(share, self._temper)
        self._highest, self._sum = np.maximum(self._highest, r), self._sum + r
        if ess:
            tried = strength * TEMPERATURES
            sizes = np.array([effective(self.log + self._with(one, r) - self._product) for one in tried])
            enough = np.flatnonzero(sizes >= ess * len(r))
            strength = float(tried[enough[-1] if enough.size else sizes.argmax()])
        self._reach(self._with(strength, r))

    def _with(self, strength: float, r: Doubles) -> Doubles:
        """Return the logarithms of the products [K] with the potentials of a checkpoint at this λ."""
        match self._potential:
            case "diff":
                return strength * r
            case "max":
                return self._product + strength * self._highest
            case "add":
                return self._product + strength * self._sum
            case "rt":
                return self._product + strength * r

    def finish(self, scores: Sequence[float]) -> None:
        """Multiply by the last potentials, which complete each product to ``exp λ·r``; scores [K] of complete images."""
        r = self._measured(scores)
        self._reach(self._strength * r)

    def _measured(self, scores: Sequence[float]) -> Doubles:
        """Return scores [K] as an array; the first ones turn a relative λ into one per score."""
        r = np.asarray(scores, dtype=np.float64)
        if self._relative:
            unit = spread(r)
            self._strength = self._strength / unit if unit > 0 else 0.0
            self._relative = False
        return r

    def _reach(self, product: Doubles) -> None:
        self.log = self.log + product - self._product
        self._product = product

    @property
    def normalised(self) -> Doubles:
        """Weights [K] with sum 1."""
        return normalised(self.log)

    @property
    def ess(self) -> float:
        """Effective sample size 1/Σw², 1..K."""
        return effective(self.log)

    @property
    def lineages(self) -> int:
        """Number of the first particles that have descendants left, 1..K: how far selection has collapsed them."""
        return len(np.unique(self._ancestors))

    @property
    def evidence(self) -> float:
        """Logarithm of the estimated mean of ``exp λ·r``; unbiased before the logarithm."""
        top = self.log.max()
        return float(self.log_evidence + top + np.log(np.mean(np.exp(self.log - top))))

    def resample(
        self,
        rng: np.random.Generator,
        scheme: Scheme = "systematic",
        below: float | None = None,
        fewer: int | None = None,
    ) -> Indices:
        """Resample particles by weight and return the indices [K] of the survivors, ascending.

        Args:
            fewer: keep only so many, in any case; None = K.
            below: resample only when the effective sample size is below this share of K; otherwise all particles survive
                with their weights. None = always.
        """
        count = len(self.log)
        size = min(fewer or count, count)
        if size == count and below is not None and self.ess >= below * count:
            return np.arange(count)
        chosen = SCHEMES[scheme](self.normalised, rng, size)
        self.log_evidence = self.evidence
        self.keep(chosen)
        self.log = np.zeros(size)
        return chosen

    def keep(self, chosen: Sequence[int] | Indices) -> None:
        """Keep only these particles [any number], with their weights and histories."""
        chosen = np.asarray(chosen, dtype=np.intp)
        self.log, self._product = self.log[chosen], self._product[chosen]
        self._highest, self._sum = self._highest[chosen], self._sum[chosen]
        self._ancestors = self._ancestors[chosen]


def normalised(log: Doubles) -> Doubles:
    """Return weights [K] with sum 1 from their logarithms."""
    weights = np.exp(log - log.max())
    return np.asarray(weights / weights.sum())


def effective(log: Doubles) -> float:
    """Return the effective sample size 1/Σw², 1..K, of weights with these logarithms [K]."""
    return float(1 / np.sum(normalised(log) ** 2))


def spread(scores: Sequence[float] | Doubles) -> float:
    """Return the standard deviation of scores [n], estimated by the mean absolute difference of their pairs times √π/2
    (Gini 1912).

    For normal scores it is without bias at any n from 2 on, and a single outlier moves it less than the usual estimate. It
    is 0 only where all scores are the same, and for fewer than two of them.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(ordered)
    if n < 2:
        return 0.0
    differences = 2 * float((2 * np.arange(n) - n + 1) @ (ordered - ordered[0]))  # the sum over all ordered pairs
    return float(np.sqrt(np.pi) / 2 * differences / (n * (n - 1)))


def temperature(share: float, gamma: float) -> float:
    """Return τ of tempering, 0..1, at a share of the schedule; 1 without tempering (γ = 0)."""
    return float(min(1.0, (1 + gamma) ** (100 * share) - 1)) if gamma else 1.0


def systematic(weights: Doubles, rng: np.random.Generator, count: int) -> Indices:
    """Choose by equidistant points with one random offset: particle i is chosen ⌊n·w_i⌋ or ⌈n·w_i⌉ times."""
    return _invert(weights, (rng.random() + np.arange(count)) / count)


def multinomial(weights: Doubles, rng: np.random.Generator, count: int) -> Indices:
    """Choose n times independently."""
    return _invert(weights, np.sort(rng.random(count)))


def residual(weights: Doubles, rng: np.random.Generator, count: int) -> Indices:
    """Choose particle i ⌊n·w_i⌋ times, and the rest independently by the remaining weights."""
    copies = np.floor(count * weights + 1e-9).astype(np.intp)
    rest = count - int(copies.sum())
    if rest:
        left = np.maximum(count * weights - copies, 0)
        copies += np.bincount(_invert(left / left.sum(), np.sort(rng.random(rest))), minlength=len(weights))
    return np.repeat(np.arange(len(weights)), copies)


def fleming_viot(weights: Doubles, rng: np.random.Generator, count: int) -> Indices:
    """Let each particle survive independently, with probability w_i / max w, and replace those that do not by survivors
    drawn evenly.

    Source: Shekhar et al. 2026, "FVD: Inference-time alignment of diffusion models via Fleming-Viot resampling" (arXiv
    2604.06779), whose survival is an independent decision by the reward. The probability is ours: with it, an index i comes
    K·w_i times on average in the limit of many particles, and nobody is replaced where all weights are the same.
    """
    alive = np.flatnonzero(rng.random(len(weights)) < weights / weights.max())
    reborn = rng.choice(alive, len(weights) - len(alive))
    return np.sort(rng.permutation(np.concatenate([alive, reborn]))[:count])


SCHEMES: dict[Scheme, Callable[[Doubles, np.random.Generator, int], Indices]] = {
    "systematic": systematic,
    "multinomial": multinomial,
    "residual": residual,
    "fleming-viot": fleming_viot,
}
"""Resampling schemes: normalised weights [K] to n ascending indices, n at most K; each index i comes n·w_i times on average,
with fleming-viot for many particles."""


def _invert(weights: Doubles, points: Doubles) -> Indices:
    cumulative = np.cumsum(weights)
    found: Indices = np.searchsorted(cumulative / cumulative[-1], points, side="right")
    return np.minimum(found, len(weights) - 1)


def twins(chosen: Sequence[int] | Indices) -> list[int]:
    """Return for each chosen index how often it was chosen before: [0, 0, 1, 2] for [4, 7, 7, 7]."""
    seen: Counter[int] = Counter()
    numbers = []
    for index in chosen:
        numbers.append(seen[int(index)])
        seen[int(index)] += 1
    return numbers


def checkpoints(start: int, steps: int, interval: float, first: float, last: float) -> list[int]:
    """Return the steps at the shares ``first``, ``first + interval``, … up to ``last`` of a trajectory from step ``start`` to
    T, each once. They lie after ``start``, and at most at T − 2: the last step has no noise to branch by."""
    length = steps - start
    count = int((last - first) / interval + 1e-9) + 1
    found = (start + max(1, round((first + number * interval) * length)) for number in range(count))
    return list(dict.fromkeys(step for step in found if step <= steps - 2))
