"""Estimators that the measurements share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from lotts_search.curves.intervals import Doubles
from lotts_search.work.requests import Bools


def pair_area(scores: Sequence[Doubles], flawed: Sequence[Bools]) -> tuple[float, int]:
    """ROC area over pairs of a flawed and an intact object of the same image, and the number of such pairs.

    Args:
        scores: per image, one score an object; a good source scores flawed objects higher.
        flawed: per image, which objects are flawed.
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
