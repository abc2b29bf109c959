"""Expected improvement and what a search learns of its trials."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from lotts_search.arithmetic.bandit import Arm, Beliefs, expected_improvement, survivors


@pytest.mark.parametrize(
    ("mean", "sd", "best"), [(0.0, 1.0, 0.0), (0.3, 0.5, 1.0), (-2.0, 0.1, -2.2), (5.0, 2.0, -1.0)]
)
def test_expected_improvement_is_its_integral(mean, sd, best):
    integral, _ = integrate.quad(lambda x: (x - best) * stats.norm.pdf(x, mean, sd), best, mean + 12 * sd)
    assert expected_improvement(mean, sd, best) == pytest.approx(integral, rel=1e-6)


def test_expected_improvement_at_its_limits():
    assert expected_improvement(0.4, 0.0, 0.1) == pytest.approx(0.3)
    assert expected_improvement(0.1, 0.0, 0.4) == 0
    assert expected_improvement(9.0, 1.0, 0.0) == pytest.approx(9.0)
    assert expected_improvement(0.0, 1.0, 30.0) < 1e-100
    assert expected_improvement(0.0, 1.0, -math.inf) == math.inf


def test_without_a_scale_everything_is_worth_a_try():
    nothing, one = Beliefs(), Beliefs(samples=[0.4])
    assert nothing.sample(0.0) == one.sample(0.4) == one.refine("a", 0.4, 0.4) == math.inf


def test_new_images_are_judged_by_those_seen():
    seen = Beliefs(samples=[0.2, 0.4, 0.6])
    assert seen.sample(0.6) == pytest.approx(expected_improvement(0.4, 0.2 * math.sqrt(4 / 3), 0.6))


def test_a_refinement_is_the_mean_of_the_prior_and_of_gains_seen():
    seen = Beliefs(weight=2, samples=[0.2, 0.4, 0.6], gains=[("a", 0.6, 0.2), ("a", 0.6, -0.1)])
    prior = expected_improvement(0.6, 0.2, 0.6)
    assert seen.refine("a", 0.6, 0.6) == pytest.approx((2 * prior + 0.2) / 4)
    # A refinement of it is under way: it counts as one that brings nothing.
    seen.pending.append("a")
    assert seen.refine("a", 0.6, 0.6) == pytest.approx((2 * prior + 0.2) / 5)


def test_gains_count_for_parents_with_like_scores():
    seen = Beliefs(weight=1, reach=0.5, samples=[0.0, 1.0, 2.0], gains=[("a", 0.0, 1.0)])
    prior = expected_improvement(0.5, 1.0, 1.5)
    weight = math.exp(-0.5)
    assert seen.refine("b", 0.5, 1.0) == pytest.approx(
        (expected_improvement(0.5, 1.0, 1.0) + weight * 0.5) / (1 + weight)
    )
    assert prior < seen.refine("a", 0.5, 1.0)
    far = Beliefs(weight=1, reach=0.5, samples=[0.0, 1.0, 2.0], gains=[("a", -9.0, 5.0)])
    assert far.refine("b", 1.0, 1.0) == pytest.approx(expected_improvement(1.0, 1.0, 1.0))


def test_failing_again_and_again_makes_a_parent_hopeless():
    values = []
    for failures in range(6):
        seen = Beliefs(samples=[0.2, 0.4, 0.6], gains=[("a", 0.6, -0.1)] * failures)
        values.append(seen.refine("a", 0.6, 0.6))
    assert all(np.diff(values) < 0) and values[-1] == pytest.approx(values[0] * 2 / 7)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-1000.0, 1.0), (3.0, 250.0)])
def test_units_of_the_score_do_not_matter(shift, scale):
    def beliefs(shift: float, scale: float) -> list[float]:
        samples = [shift + scale * s for s in (0.2, 0.5, 0.9)]
        gains = [("a", samples[1], 0.2 * scale), ("b", samples[2], -0.1 * scale)]
        seen, best = Beliefs(samples=samples, gains=gains), samples[2]
        values = [seen.sample(best), seen.refined_sample(best), seen.refine("a", samples[1], best)]
        return [value / scale for value in values]

    assert beliefs(shift, scale) == pytest.approx(beliefs(0.0, 1.0), rel=1e-6)


def test_a_refined_new_image_is_worth_more_where_refining_helps():
    helps = Beliefs(samples=[0.2, 0.4, 0.6], gains=[("a", 0.4, 0.3), ("b", 0.4, 0.25)])
    harms = Beliefs(samples=[0.2, 0.4, 0.6], gains=[("a", 0.4, -0.3), ("b", 0.4, -0.25)])
    assert helps.refined_sample(0.7) > 2 * helps.sample(0.7)
    assert harms.refined_sample(0.7) < harms.sample(0.7)


def test_survivors_are_halved_in_equal_shares_of_the_budget():
    assert [survivors(8, spent) for spent in (0, 0.2, 0.26, 0.49, 0.51, 0.99, 1.0)] == [8, 8, 4, 4, 2, 2, 2]
    assert survivors(1, 0.5) == 2


def test_rate_is_improvement_per_nfe():
    assert Arm(0.3, 6.0, "a").rate == pytest.approx(0.05)
