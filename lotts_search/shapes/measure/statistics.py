"""Estimators that the measurements share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import gammaln

Doubles = npt.NDArray[np.float64]


def best_of(guide: Doubles, value: Doubles, size: int) -> float:
    """Expected ``value`` of the one that ``guide`` likes best among ``size`` drawn from a pool without replacement.

    The unbiased order-statistics estimator: the candidate of rank i (0 = worst of n) wins with probability
    C(i, size - 1) / C(n, size).

    Args:
        guide: [n] scores that select.
        value: [n] what is reported of the selected one.
        size: how many are drawn, 1 to n.
    """
    n = len(guide)
    if not 1 <= size <= n:
        raise ValueError(f"size must be 1 to {n}, not {size}")
    rank = np.arange(n)
    usable = rank >= size - 1
    log = np.full(n, -np.inf)
    r = rank[usable].astype(float)
    log[usable] = gammaln(r + 1) - gammaln(size) - gammaln(r - size + 2)
    log -= gammaln(n + 1) - gammaln(size + 1) - gammaln(n - size + 1)
    return float(np.exp(log) @ value[np.argsort(guide, kind="stable")])


def pair_area(scores: Sequence[Doubles], flawed: Sequence[npt.NDArray[np.bool_]]) -> tuple[float, int]:
    """ROC area over pairs of a flawed and an intact object of the same picture, and the number of such pairs.

    Args:
        scores: per picture, one score an object; a good source scores flawed objects higher.
        flawed: per picture, which objects are flawed.
    """
    wins, pairs = 0.0, 0
    for score, flaw in zip(scores, flawed, strict=True):
        difference = score[flaw][:, None] - score[~flaw][None, :]
        wins += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
        pairs += difference.size
    return (wins / pairs if pairs else float("nan")), pairs


def within_group_spearman(a: Sequence[Doubles], b: Sequence[Doubles]) -> float:
    """Mean over groups of Spearman's correlation; groups where one side is constant are left out."""
    values = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True) if np.ptp(x) > 0 and np.ptp(y) > 0]
    return float(np.mean(values))
