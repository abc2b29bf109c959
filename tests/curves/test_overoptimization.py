"""Held-out values against the guiding score: planted declines are flagged, chance is not."""

from __future__ import annotations

import numpy as np
import pytest

from lotts_search.curves import Panel, Results, Tradeoff, from_table, tradeoff
from lotts_search.curves.intervals import Doubles
from tests.curves.test_curves import _hand


def panel(y: Doubles, of: str = "truth", x: Doubles | None = None) -> Panel:
    cost = np.arange(1.0, y.shape[1] + 1) if x is None else x
    return Panel(cost, y, np.arange(len(y)), np.full(len(y), cost[-1]), "nfe", of)


def planted(prompts: int, fall: float, noise: float, seed: int = 0) -> Tradeoff:
    """A score that rises by 0.1 a step, and a value that rises to step 4 and then falls by ``fall`` a step."""
    rng = np.random.default_rng(seed)
    steps = np.arange(8)
    value = np.where(steps <= 4, 0.1 * steps, 0.4 - fall * (steps - 4)) + noise * rng.standard_normal((prompts, 8))
    score = 0.1 * steps + rng.standard_normal((prompts, 1))
    return tradeoff(panel(score, "score"), panel(value))


def test_a_planted_decline_is_found_at_its_peak_and_of_its_size() -> None:
    found = planted(40, fall=0.05, noise=0.0)
    assert found.peak == 4
    assert found.after.mean == pytest.approx(-0.15) and found.gained.mean == pytest.approx(0.3)
    assert found.overoptimized
    noisy = planted(200, fall=0.05, noise=0.1)
    assert noisy.after.low < -0.15 < noisy.after.high < 0 and noisy.overoptimized


def test_a_value_that_rises_or_stays_is_not_flagged() -> None:
    rising = planted(40, fall=-0.1, noise=0.0)
    assert rising.peak == 7 and rising.after.mean == 0 and not rising.overoptimized
    flat = tradeoff(panel(np.arange(8.0) + np.zeros((5, 1)), "score"), panel(np.zeros((5, 8))))
    assert not flat.overoptimized


def test_the_peak_of_pure_noise_is_flagged_in_at_most_5_percent_of_studies() -> None:
    """Taken from the same prompts, the highest of 20 noisy means would seem to fall afterwards in most studies."""
    rng = np.random.default_rng(1)
    score = panel(np.arange(20.0) + np.zeros((30, 1)), "score")
    flagged = naive = 0
    for _ in range(300):
        value = panel(rng.standard_normal((30, 20)))
        flagged += tradeoff(score, value).overoptimized
        change = value.y[:, -1] - value.y[:, value.y.mean(axis=0).argmax()]
        naive += change.mean() + 1.96 * change.std() / np.sqrt(30) < 0
    assert flagged <= 15 and naive > 60


def test_costs_and_prompts_that_both_have_are_compared() -> None:
    score = panel(np.array([[0.0, 1.0, 2.0]]), "score", np.array([1.0, 2.0, 3.0]))
    value = panel(np.array([[5.0, 4.0], [9.0, 9.0]]), x=np.array([1.0, 3.0]))
    found = tradeoff(score, value)
    np.testing.assert_array_equal(found.cost, [1, 3])
    np.testing.assert_array_equal(found.score, [0, 2])
    np.testing.assert_array_equal(found.value, [5, 4])


def test_of_a_table_it_is_the_verifiers_choice() -> None:
    """The second image has the higher score and the lower held-out value."""
    rows = [(f"s{i}", f"p{i}", 10.0, score, truth) for i in range(6) for score, truth in ((0.2, 0.9), (0.6, 0.5))]
    results = Results(from_table(_hand(rows)))
    setup = results.setups[0]
    found = results.tradeoff([setup], "truth")
    assert found.value[0] == pytest.approx(0.7), "of one image, in expectation over the pool"
    assert found.value[-1] == pytest.approx(0.5) and found.score[-1] == pytest.approx(0.6)
    assert found.after.mean == pytest.approx(-0.2) and found.overoptimized
