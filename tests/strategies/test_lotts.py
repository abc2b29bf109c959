"""LoTTS."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lotts_search import BadInput, BudgetTooSmall, search
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import Plan, Strategy
from lotts_search.strategies.lotts import LoTTS
from lotts_search.testing import AnalyticPool, analytic_info, seconds_as_requests
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.masks import AttentionMask, ErrorContrastMask, RandomMask, WholeMask
from lotts_search.work.requests import Locate, Segment

# On the analytic model: a sample costs 8 NFE, a localization 1, a refinement 5, a branch of one and two 19.


class TestLoTTS(StrategyConformance):
    def strategy(self) -> Strategy:
        return LoTTS()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        refine = costs.refine()
        return refine if plan.trials.get("localize") else costs.localize() + refine


class TestDeep(TestLoTTS):
    def strategy(self) -> Strategy:
        return LoTTS(depth=2)


class TestFromPureNoise(TestLoTTS):
    """Refinements that cost as much as samples."""

    def strategy(self) -> Strategy:
        return LoTTS(temporal=False, refinements=1)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.refine(0)


class TestOneRoot(TestLoTTS):
    def strategy(self) -> Strategy:
        return LoTTS(initial=1, mask=RandomMask())


def run(strategy: LoTTS, **arguments):
    with AnalyticPool() as pool:
        return search("red star", strategy=strategy, pool=pool, **arguments), pool


def refinements(pool: AnalyticPool) -> list[Segment]:
    return [w for w in pool.asked if isinstance(w, Segment) and w.renoise is not None]


def test_nine_images_are_three_branches_of_one_and_two():
    result, _ = run(LoTTS(), images=9)
    kinds = Counter(t.kind for t in result.trials)
    assert kinds == {"sample": 3, "localize": 3, "refine": 6, "score": 9}
    samples = {t.trial_id for t in result.trials if t.kind == "sample"}
    assert Counter(t.parent_id for t in result.trials if t.kind == "refine") == dict.fromkeys(samples, 2)
    assert result.ledger.nfe == 3 * 19


def test_refining_repairs_what_sampling_damaged():
    gains = []
    for seed in range(20):
        result, _ = run(LoTTS(initial=1, refinements=4), images=5, seed=seed)
        gains.append(result.best_refined.score - result.trials[0].score)
    assert np.mean(gains) > 0.1 and min(gains) >= 0


def test_leftover_goes_into_the_best_located_image():
    result, _ = run(LoTTS(), nfe=2 * 19 + 2 * 5 + 4)
    samples = [t for t in result.trials if t.kind == "sample"]
    best = max(samples, key=lambda t: t.score)
    assert Counter(t.parent_id for t in result.trials if t.kind == "refine")[best.trial_id] == 4
    assert len({t.lineage for t in result.trials if t.kind == "refine"}) == 6


def test_deeper_refinements_have_fresh_masks_of_their_own_parents():
    result, _ = run(LoTTS(depth=2), nfe=19 + 2 * 11)
    by_id = {t.trial_id: t for t in result.trials}
    located = [t.parent_id for t in result.trials if t.kind == "localize"]
    assert len(located) == len(set(located)) == 3
    assert Counter(len(t.lineage) for t in result.trials if t.kind == "refine") == {2: 2, 3: 4}
    assert all(by_id[t.parent_id].kind == "refine" for t in result.trials if len(t.lineage) == 3)


def test_trees_are_as_deep_as_the_budget_pays_for():
    """A tree of depth D has 2^D - 1 masks of 1 NFE, each with two refinements of 5."""
    costs = Costs(8, True, analytic_info().defaults)
    for nfe, masks in ((8 + 11, 1), (8 + 3 * 11 - 1, 2), (8 + 3 * 11, 3), (8 + 1023 * 11, 1023)):
        assert LoTTS(depth=100_000).plan(Budget(nfe=nfe), costs).trials["localize"] == masks
    assert LoTTS(depth=100_000, refinements=1).plan(Budget(nfe=8 + 200 * 6), costs).trials["localize"] == 200
    assert LoTTS(depth=3).plan(Budget(nfe=8 + 1023 * 11), costs).trials["localize"] == 7 * ((8 + 1023 * 11) // 85)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (3, 1, "fixed", True)),
        ({"temporal": False}, (0, 1, "fixed", True)),
        ({"holistic": False}, (3, 0, "fixed", True)),
        ({"spatial": False, "background": "fresh"}, (3, 1, "fresh", False)),
        ({"start": 5, "integrate": 2}, (5, 2, "fixed", True)),
        ({"start": 7}, (7, 1, "fixed", True)),
    ],
)
def test_each_switch_reaches_the_refinement(settings, expected):
    _, pool = run(LoTTS(**settings), images=3)
    for work in refinements(pool):
        region = work.region
        assert (work.renoise, region.integrate, region.background, region.spatial) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ErrorContrastMask(levels=(400,))),
        ({"ratio": 0.25, "level": 150}, ErrorContrastMask(ratio=0.25, levels=(150,))),
        (
            {"mask": AttentionMask(), "alpha": 1.0, "level": 7, "high": "good {}", "contrast": False},
            AttentionMask(alpha=1.0, level=7, high="good {}", contrast=False),
        ),
        ({"mask": WholeMask()}, WholeMask()),
    ],
)
def test_mask_settings_reach_the_localization(settings, expected):
    result, pool = run(LoTTS(**settings), images=3)
    assert {w.source for w in pool.asked if isinstance(w, Locate)} == {expected}
    ratios = {t.mask_ratio for t in result.trials if t.kind == "refine"}
    assert ratios == {expected.ratio}


def test_a_setting_that_the_mask_does_not_have_is_refused():
    with pytest.raises(BadInput, match=r"'alpha'.*ratio"):
        run(LoTTS(alpha=1.0), images=3)
    with pytest.raises(BadInput, match="refinements must be 1 or more"):
        LoTTS(refinements=0)


def test_a_given_image_is_refined_and_competes():
    given, _ = run(LoTTS(), images=1, seed=4)
    result, _ = run(LoTTS(), nfe=23, image=given.image, seed=1)
    assert Counter(t.kind for t in result.trials if t.kind != "score") == {"encode": 1, "localize": 1, "refine": 4}
    assert result.trials[0].score == pytest.approx(given.score)
    assert result.score >= given.score
    with pytest.raises(BudgetTooSmall, match="one refinement, which costs 6 NFE"):
        run(LoTTS(), nfe=5.5, image=given.image)


def test_a_budget_of_time_is_used_for_new_trees():
    with AnalyticPool() as pool, seconds_as_requests(pool):
        result = search("red star", strategy=LoTTS(), pool=pool, seconds=200)
    assert result.status == "seconds"
    assert sum(t.kind == "sample" for t in result.trials) > 20
    assert sum(t.kind == "refine" for t in result.trials) > 40
