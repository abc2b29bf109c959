"""What each region of each child adds to the score, estimated from the scores of mosaics: a designed experiment.

Each mosaic shows in every region one of M children, and a verifier scores it. The model is the analysis of variance of a
factorial experiment with random effects (Yates 1937; Henderson 1975), fitted by empirical Bayes: a score is the sum over
the regions of the effects of the children that they show, plus noise. All mosaics then tell something about all effects: an
effect's variance is about 2M/K of a score's with K mosaics, where changing one region at a time it is twice a score's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LENGTHS = (0.0, 1.0, 2.0, math.inf)
"""Distances, in regions, over which the effects of a child are alike: from not at all (0) to the whole image (inf)."""
RATIOS = np.logspace(-4, 4, 33)
"""Ratios of the variance of effects to that of noise."""


@dataclass(frozen=True)
class Effects:
    """Estimated effects.

    Attributes:
        mean: [rows, columns, M] expected effects; each region's best child has the highest.
    """

    mean: Array

    @property
    def best(self) -> npt.NDArray[np.intp]:
        """Return the best child of each region [rows, columns], the first among equals."""
        best: npt.NDArray[np.intp] = self.mean.argmax(2)
        return best


def design(count: int, shape: tuple[int, int], mosaics: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return random choices [mosaics, *shape] among ``count`` children, in which every region shows every child equally often
    (but for one where ``count`` does not divide ``mosaics``)."""
    columns = [
        rng.permutation((np.arange(mosaics) + first) % count) for first in rng.integers(count, size=math.prod(shape))
    ]
    return np.stack(columns, 1).reshape(mosaics, *shape).astype(np.uint8)


def estimate(
    choices: npt.NDArray[np.integer], scores: Sequence[float], count: int, lengths: Sequence[float] = LENGTHS
) -> Effects:
    """Estimate the effects of ``count`` children, averaged over the possible variances and lengths by their likelihood.

    Args:
        choices: [n, rows, columns], 0..count-1; those of children alone are constant.
        scores: [n].
        lengths: distances over which the effects of a child may be alike.
    """
    _, rows, columns = choices.shape
    shown = (choices.reshape(len(choices), -1)[:, :, None] == np.arange(count)).astype(np.float64)  # [n, R, M]
    y = np.asarray(scores, np.float64)
    # Orthonormal contrasts [n, n-1] of the scores: the mean score drops out.
    contrasts = np.linalg.qr(np.column_stack([np.ones(len(y)), np.eye(len(y))[:, 1:]]))[0][:, 1:]
    fits = [_fit(shown, y, contrasts, _alike(rows, columns, length)) for length in lengths]
    likelihood = np.array([fit.likelihood for fit in fits])  # [lengths, ratios]
    weights = np.exp(likelihood - likelihood.max())
    weights /= weights.sum()
    mean = sum(fit.mean(weight) for fit, weight in zip(fits, weights, strict=True))
    # Rounded, so that equal effects stay equal whatever order a machine adds numbers in.
    scale = float(np.ptp(y)) or 1.0
    mean = np.round(np.asarray(mean) / scale, 9) * scale
    return Effects(mean.reshape(rows, columns, count))


def _alike(rows: int, columns: int, length: float) -> Array:
    """Return the correlation [R, R] of a child's effects in two regions, by the distance between these."""
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    distance = ((places[:, None] - places[None]) ** 2).sum(-1).astype(np.float64)
    return np.exp(-distance / (2 * length**2)) if length > 0 else np.eye(len(places))


class _Fit(NamedTuple):
    """The model under one correlation, for each of :data:`RATIOS`.

    Attributes:
        likelihood: [ratios] logarithms, with the best variance of the noise, which is what the effects do not explain.
        weighted: [n, R, M] covariance of scores and effects, in units of the effects' variance.
        axes, parts, spread: principal axes [n, n-1] of the scores, the scores along them [n-1], and their variances [ratios,
            n-1] in units of the noise's.
    """

    likelihood: Array
    weighted: Array
    axes: Array
    parts: Array
    spread: Array

    def mean(self, weights: Array) -> Array:
        """Return the expected effects [R, M], averaged over the ratios."""
        along = (weights[:, None] * RATIOS[:, None] * self.parts / self.spread).sum(0)
        mean: Array = np.einsum("nsm,n->sm", self.weighted, self.axes @ along, optimize=True)
        return mean


def _fit(shown: Array, y: Array, contrasts: Array, alike: Array) -> _Fit:
    weighted = np.einsum("nrm,rs->nsm", shown, alike, optimize=True)
    covariance = np.einsum("nsm,ksm->nk", weighted, shown, optimize=True)
    sizes, axes = np.linalg.eigh(contrasts.T @ covariance @ contrasts)
    axes = contrasts @ axes
    parts = axes.T @ y
    spread = RATIOS[:, None] * np.clip(sizes, 0, None) + 1
    noise = np.maximum((parts**2 / spread).mean(1), 1e-18)
    likelihood = -0.5 * (len(parts) * np.log(noise) + np.log(spread).sum(1))
    return _Fit(likelihood, weighted, axes, parts, spread)
