"""Values and choices of the tree search."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lotts_search.arithmetic.mcts import Node, back_up, boltzmann, soft_value, upper_bound
from lotts_search.core.candidate import Candidate


def state(step, score=None):
    return Candidate(f"{step} {score}", "advance", step, 8, (), 0.0, score=score)


def grown(*values, visits=None):
    """A root with half-denoised children of these values."""
    root = Node(visits=10)
    for place, value in enumerate(values):
        child = root.add(state(4))
        child.value, child.visits = value, (visits or [1] * len(values))[place]
    return root


def test_soft_values_lie_between_mean_and_maximum():
    values = [0.1, 0.5, 0.9]
    assert soft_value(values, 1e-6) == pytest.approx(0.5, abs=1e-5)
    assert soft_value(values, 1e5) == pytest.approx(0.9, abs=1e-4)
    assert soft_value(values, 10.0) == pytest.approx(math.log(np.mean(np.exp(10 * np.array(values)))) / 10)
    assert soft_value([-1e6, -1e6 + 1], 3.0) == pytest.approx(-1e6 + soft_value([0, 1], 3.0))


def test_scores_are_passed_up_through_every_state_of_the_path():
    root = Node()
    first = root.add(state(0))
    middle = first.add(state(5))
    for score in (0.2, 0.8):
        back_up([root, first, middle, middle.add(state(8, score))], 5.0)
    other = root.add(state(0))
    assert (other.value, root.value) == (None, pytest.approx(soft_value([0.2, 0.8], 5.0)))
    back_up([root, other, other.add(state(8, 0.5))], 5.0)
    assert middle.value == first.value == pytest.approx(soft_value([0.2, 0.8], 5.0))
    assert root.value == pytest.approx(soft_value([first.value, 0.5], 5.0))
    assert [child.step for child in middle.children] == [8, 8] and middle.inner == [] and root.inner == [first, other]


def test_the_bound_prefers_high_values_and_few_visits():
    root = grown(0.5, 0.6, None)
    assert upper_bound(root, root.inner, 0.0).value == 0.6
    root = grown(0.5, 0.6, visits=[1, 9])
    assert upper_bound(root, root.inner, 0.0).value == 0.6
    # 0.5 + √ln 10 against 0.6 + √(ln 10 / 9)
    assert upper_bound(root, root.inner, 1.0).value == 0.5


def test_sampling_goes_down_by_the_exponential_of_the_values():
    root, rng = grown(0.0, 0.1, 0.3, None), np.random.default_rng(0)
    drawn = [boltzmann(root.inner, 10.0, rng).value for _ in range(4000)]
    expected = np.exp([0, 1, 3]) / np.exp([0, 1, 3]).sum()
    found = [drawn.count(value) / 4000 for value in (0.0, 0.1, 0.3)]
    assert found == pytest.approx(expected, abs=0.03)
    unknown = grown(None, None)
    assert {id(boltzmann(unknown.inner, 10.0, rng)) for _ in range(50)} == {id(child) for child in unknown.children}
