"""Estimators shared by the measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from lotts_search.curves.intervals import Doubles
from lotts_search.work.requests import Bools


def pair_area(scores: Sequence[Doubles], flawed: Sequence[Bools]) -> tuple[float, int]:
    """Return the ROC area over pairs of a flawed and an intact object of the same image, and the number of pairs.

    Args:
        scores: for each image, one score per object; a good source scores flawed objects higher.
        flawed: for each image, which objects are flawed.
    """
    wins, pairs = 0.0, 0
    for score, flaw in zip(scores, flawed, strict=True):
        difference = score[flaw][:, None] - score[~flaw][None, :]
        wins += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
        pairs += difference.size
    return (wins / pairs if pairs else float("nan")), pairs


def within_group_spearman(a: Sequence[Doubles], b: Sequence[Doubles]) -> float:
    """Return the mean of Spearman's correlation over the groups; groups with a constant side are left out."""
    values = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True) if np.ptp(x) > 0 and np.ptp(y) > 0]
    return float(np.mean(values))
