"""Best-of-N from one pool: the whole curve over N, without drawing subsets.

Of n independent pictures sorted by the guiding score, the one of rank i (0 = worst) is the best of a random subset of
k with probability C(i, k − 1) / C(n, k). Averaging any value with these weights is the unbiased order-statistics
estimator: the mean over all subsets of size k, as in pass@k (Chen et al. 2021, "Evaluating Large Language Models
Trained on Code", Eq. 1).
"""

from __future__ import annotations

import numpy as np

from lotts_search.curves.intervals import Doubles


def selection_weights(n: int, most: int | None = None) -> Doubles:
    """Probabilities [most, n]: row k − 1 has those with which the picture of rank i is the best of k drawn from n."""
    sizes = np.arange(1, (most or n) + 1, dtype=np.float64)[:, None]
    ranks = np.arange(n - 1, 0, -1, dtype=np.float64)[None]
    # From the best down: w[n − 1] = k / n and w[i − 1] = w[i]·(i − k + 1) / i, which ends at 0 where i = k − 1.
    factors = np.maximum((ranks - sizes + 1) / ranks, 0.0)
    falling = np.cumprod(np.concatenate([sizes / n, factors], axis=1), axis=1)
    return np.ascontiguousarray(falling[:, ::-1])


def best_of_curve(guide: Doubles, value: Doubles, most: int | None = None) -> Doubles:
    """Expected ``value`` of the picture that ``guide`` likes best among k = 1 … ``most``, for many pools at once.

    Equal guiding scores are equally likely to be chosen.

    Args:
        guide: [..., n] scores that select.
        value: [..., n] what is reported of the selected one; of the shape of ``guide``.
        most: the greatest k, 1 to n; None = n.

    Returns:
        [..., most].

    Raises:
        ValueError: ``most`` is not 1 to n.
    """
    n = guide.shape[-1]
    if not 1 <= (most := n if most is None else most) <= n:
        raise ValueError(f"size must be 1 to {n}, not {most}")
    order = np.argsort(guide, axis=-1, kind="stable")
    ranked, values = np.take_along_axis(guide, order, -1), np.take_along_axis(value, order, -1)
    return np.asarray(_tied_means(ranked, values) @ selection_weights(n, most).T)


def best_of(guide: Doubles, value: Doubles, size: int) -> float:
    """Expected ``value`` [n] of the one that ``guide`` [n] likes best among ``size`` drawn without replacement.

    Raises:
        ValueError: ``size`` is not 1 to n.
    """
    return float(best_of_curve(guide, value, size)[-1])


def _tied_means(ranked: Doubles, values: Doubles) -> Doubles:
    """``values`` [..., n] with each replaced by the mean over those whose score in ``ranked`` equals its own."""
    new = np.ones(ranked.shape, dtype=bool)
    new[..., 1:] = ranked[..., 1:] != ranked[..., :-1]
    if new.all():
        return values
    group = np.cumsum(new.ravel()) - 1
    means = np.bincount(group, values.ravel()) / np.bincount(group)
    return np.asarray(means[group].reshape(values.shape))
