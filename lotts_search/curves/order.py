"""Best-of-N from one pool of images: the whole curve over N, without drawing subsets.

When n independent images are sorted by the verifier's score, the image of rank i (0 = worst) is the best of a random
subset of k with probability C(i, k − 1) / C(n, k). The average of any value with these weights is the unbiased
order-statistics estimator: the mean over all subsets of size k, as in pass@k (Chen et al. 2021, "Evaluating Large
Language Models Trained on Code", Eq. 1).
"""

from __future__ import annotations

import math

import numpy as np

from lotts_search.curves.intervals import Doubles, Ints

ALL = 256
"""A curve has every subset size up to this; larger sizes are 3 % apart, for pools of thousands."""


def sizes(most: int) -> Ints:
    """Return the subset sizes of a curve from 1 to ``most``, ascending and both included."""
    if most <= ALL:
        return np.arange(1, most + 1)
    apart = np.geomspace(ALL, most, 1 + math.ceil(math.log(most / ALL) / math.log(1.03)))
    return np.unique(np.concatenate([np.arange(1, ALL), apart.round().astype(np.int64)]))


def selection_weights(n: int, chosen: Ints) -> Doubles:
    """Return the probability that the image of rank i is the best of k drawn from n, for each ``chosen`` k [k, n]."""
    k = chosen.astype(np.float64)[:, None]
    ranks = np.arange(n - 1, 0, -1, dtype=np.float64)[None]
    # From the best down: w[n − 1] = k / n and w[i − 1] = w[i]·(i − k + 1) / i, which ends at 0 where i = k − 1.
    factors = np.maximum((ranks - k + 1) / ranks, 0.0)
    falling = np.cumprod(np.concatenate([k / n, factors], axis=1), axis=1)
    return np.ascontiguousarray(falling[:, ::-1])


def best_of_curve(score: Doubles, value: Doubles, chosen: Ints | None = None) -> Doubles:
    """Return the expected ``value`` of the image with the best ``score`` among k, for many k and many pools at once.

    Images with equal scores are equally likely to be chosen.

    Args:
        score: [..., n] scores that select an image.
        value: [..., n] what is reported of the selected image; same shape as ``score``.
        chosen: [k] subset sizes from 1 to n; None = all.

    Returns:
        [..., k] expected values.

    Raises:
        ValueError: a size is not 1 to n.
    """
    n = score.shape[-1]
    chosen = np.arange(1, n + 1) if chosen is None else chosen
    for size in chosen:
        if not 1 <= size <= n:
            raise ValueError(f"size must be 1 to {n}, not {size}")
    order = np.argsort(score, axis=-1, kind="stable")
    ranked, values = np.take_along_axis(score, order, -1), np.take_along_axis(value, order, -1)
    return np.asarray(_tied_means(ranked, values) @ selection_weights(n, chosen).T)


def best_of(score: Doubles, value: Doubles, size: int) -> float:
    """Return the expected ``value`` [n] of the best by ``score`` [n] among ``size`` drawn without replacement.

    Raises:
        ValueError: ``size`` is not 1 to n.
    """
    return float(best_of_curve(score, value, np.array([size]))[0])


def _tied_means(ranked: Doubles, values: Doubles) -> Doubles:
    """Replace each of ``values`` [..., n] by the mean over all entries with the same score in ``ranked`` [..., n]."""
    new = np.ones(ranked.shape, dtype=bool)
    new[..., 1:] = ranked[..., 1:] != ranked[..., :-1]
    if new.all():
        return values
    group = np.cumsum(new.ravel()) - 1
    means = np.bincount(group, values.ravel()) / np.bincount(group)
    return np.asarray(means[group].reshape(values.shape))
