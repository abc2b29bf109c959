"""The order-statistics estimator against averages over all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lotts_search.curves.order import best_of, best_of_curve, selection_weights, sizes


def _brute(score: np.ndarray, value: np.ndarray, size: int) -> float:
    """Return the mean over all subsets of the value of their best image; equally good images count equally."""
    found = []
    for subset in map(list, itertools.combinations(range(len(score)), size)):
        top = score[subset] == score[subset].max()
        found.append(value[subset][top].mean())
    return float(np.mean(found))


@pytest.mark.parametrize("ties", [False, True])
def test_the_curve_equals_the_average_over_all_subsets(ties: bool) -> None:
    rng = np.random.default_rng(0)
    score, value = rng.normal(size=(3, 9)), rng.normal(size=(3, 9))
    if ties:
        score = score.round()
        assert all(np.unique(row).size < 7 for row in score)
    curve = best_of_curve(score, value)
    brute = [[_brute(s, v, size) for size in range(1, 10)] for s, v in zip(score, value, strict=True)]
    np.testing.assert_allclose(curve, brute, rtol=0, atol=1e-12)
    assert best_of(score[1], value[1], 4) == pytest.approx(brute[1][3], abs=1e-12)


def test_weights_of_a_large_pool_add_up() -> None:
    weights = selection_weights(5000, np.arange(1, 201))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-12)
    # The expected rank of the best of k from 0 … n − 1 is k·(n + 1) / (k + 1) − 1.
    k = np.arange(1, 201)
    np.testing.assert_allclose(weights @ np.arange(5000.0), k * 5001 / (k + 1) - 1, rtol=1e-12)


def test_a_size_beyond_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 3, not 4"):
        best_of(np.zeros(3), np.zeros(3), 4)


def test_sizes_of_a_large_pool_stay_few() -> None:
    assert sizes(5).tolist() == [1, 2, 3, 4, 5]
    found = sizes(100_000)
    assert found[0] == 1 and found[-1] == 100_000 and found.size < 500
    assert (np.diff(found) / found[:-1])[255:].max() < 0.035
