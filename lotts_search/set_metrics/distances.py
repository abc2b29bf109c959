"""Distances between two sets of images by their features, and distances within a set; numpy alone.

Features are rows of a matrix [n, d] in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist

from lotts_search.curves.bootstrap import percentile_interval, resampling_weights
from lotts_search.curves.intervals import Doubles, Interval, Ints

Kernel = Callable[[Doubles, Doubles], Doubles]
"""Takes features [n, d] and [m, d] and returns the matrix [n, m]."""
BLOCK = 1024
"""Rows of a kernel's matrix that are held at a time."""
FEWEST_PROMPTS = 10
"""Prompts that an interval of a distance needs."""


def frechet_distance(x: Doubles, y: Doubles) -> float:
    """Return the squared Fréchet distance of the Gaussians with the means and covariances of two sets of features:
    ``|μx − μy|² + tr(Σx + Σy − 2(ΣxΣy)^½)`` (Dowson and Landau 1982; on Inception features it is FID, Heusel et al. 2017).

    With ``Σx = AᵀA`` and ``Σy = BᵀB``, the trace of the root is the sum of the singular values of ``ABᵀ``. This holds for
    singular covariances, too, where roots of matrices lose digits: fewer images than features.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("a Fréchet distance needs two images on each side")
    a, b = _factor(x), _factor(y)
    shift = x.mean(axis=0) - y.mean(axis=0)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(shift @ shift + (a * a).sum() + (b * b).sum() - 2 * root, 0.0))


def _factor(x: Doubles) -> Doubles:
    """Return a matrix A of at most d rows whose AᵀA is the covariance of x."""
    return np.asarray(np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode="r"))


def polynomial(x: Doubles, y: Doubles) -> Doubles:
    """Return KID's kernel ``(x·y/d + 1)³`` (Bińkowski et al. 2018)."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def gaussian(x: Doubles, y: Doubles) -> Doubles:
    """Return CMMD's kernel ``1000·exp(−|x/|x| − y/|y||²/(2·10²))`` (Jayasumana et al. 2024); the factor is that of its
    published values."""
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return np.asarray(1000 * np.exp((x @ y.T - 1) / 10**2))  # |x − y|² = 2 − 2·x·y on the unit sphere


def mean_within(x: Doubles, kernel: Kernel) -> float:
    """Return the mean of a kernel over all pairs of different rows."""
    total = sum(kernel(x[i : i + BLOCK], x).sum() for i in range(0, len(x), BLOCK))
    return float(total - _own(x, kernel).sum()) / (len(x) * (len(x) - 1))


def _own(x: Doubles, kernel: Kernel) -> Doubles:
    """Return a kernel of each row with itself [n]."""
    return np.array([kernel(row[None], row[None])[0, 0] for row in x])


@dataclass(frozen=True)
class Discrepancy:
    """The squared maximum mean discrepancy of two sets under a kernel, estimated without bias (Gretton et al. 2012, Eq. 3):
    the means over pairs within each set minus twice the mean over pairs between them. It may be below 0.

    Attributes:
        reference: features of the reference [m, d].
        kernel: the kernel.
        within: mean of the kernel within the reference.
    """

    reference: Doubles
    kernel: Kernel
    within: float

    @classmethod
    def to(cls, reference: Doubles, kernel: Kernel) -> Discrepancy:
        """Return the discrepancy to a reference of two rows or more."""
        return cls(reference, kernel, mean_within(reference, kernel))

    def of(self, x: Doubles, prompts: Ints) -> Interval:
        """Return the discrepancy of features [n, d], n ≥ 2, with its interval over prompts [n].

        A replicate resamples whole prompts and keeps the reference. Copies of a prompt make no pairs with each other, since
        a sample from many prompts would not have them. With fewer than :data:`FEWEST_PROMPTS` prompts the ends are NaN.
        """
        order = np.argsort(prompts, kind="stable")
        _, first, sizes = np.unique(prompts[order], return_index=True, return_counts=True)
        x, count = x[order], len(sizes)

        def by_prompt(values: Doubles) -> Doubles:
            return np.add.reduceat(values, first, axis=0)

        between = by_prompt(by_prompt(self.kernel(x, x)).T)  # sums over the pairs of two prompts
        same = np.diag(between) - by_prompt(_own(x, self.kernel))
        np.fill_diagonal(between, 0.0)
        blocks = (x[i : i + BLOCK] for i in range(0, len(x), BLOCK))
        across = by_prompt(np.concatenate([self.kernel(block, self.reference).mean(axis=1) for block in blocks]))

        def value(counts: Doubles) -> Doubles:
            drawn = counts @ sizes
            pairs = drawn**2 - ((counts * sizes) ** 2).sum(axis=1) + counts @ (sizes * (sizes - 1))
            within = (((counts @ between) * counts).sum(axis=1) + counts @ same) / pairs
            return np.asarray(within + self.within - 2 * (counts @ across) / drawn)

        mean = float(value(np.ones((1, count)))[0])
        if count < FEWEST_PROMPTS:
            return Interval(mean, np.nan, np.nan)
        low, high = percentile_interval(value(resampling_weights(count) * count), count)
        return Interval(mean, float(low), float(high))


def diversity(x: Doubles, prompts: Ints) -> Doubles:
    """Return the mean distance of two images of a prompt [p], for each prompt with two images or more: Euclidean, of
    features [n, d] with their prompts [n]."""
    groups = [x[prompts == prompt] for prompt in np.unique(prompts)]
    return np.array([pdist(group).mean() for group in groups if len(group) > 1])
