from __future__ import annotations

import numpy as np
import pytest

from lotts_search.shapes.measure.statistics import pair_area, within_group_spearman


def test_pairs_are_counted_within_images_only() -> None:
    # In each image the flawed object has the highest score, but not a higher one than the other image's intact objects.
    scores = [np.array([1.0, 0.0]), np.array([10.0, 9.0, 9.5])]
    flawed = [np.array([True, False]), np.array([True, False, False])]
    assert pair_area(scores, flawed) == (1.0, 3)
    assert pair_area([np.array([2.0, 2.0])], [np.array([True, False])]) == (0.5, 1)


def test_correlation_is_taken_within_groups() -> None:
    a = [np.array([1.0, 2.0, 3.0]), np.array([30.0, 20.0, 10.0]), np.array([5.0, 5.0, 5.0])]
    b = [np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0])]
    assert within_group_spearman(a, b) == pytest.approx(1.0)
