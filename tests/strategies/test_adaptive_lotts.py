"""LoTTS that decides as it goes."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from lotts_search import BadInput, BudgetTooSmall, Failure, SearchResult, search
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import Plan, Strategy
from lotts_search.strategies import adaptive_lotts
from lotts_search.strategies.adaptive_lotts import AdaptiveLoTTS
from lotts_search.strategies.adaptive_mosaic import AdaptiveMosaic
from lotts_search.strategies.best_of_n import BestOfN
from lotts_search.strategies.lotts import LoTTS
from lotts_search.testing import AnalyticPool, analytic_info, seconds_as_requests
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.masks import ErrorContrastMask, FusionMask, TrajectoryMask
from lotts_search.work.requests import Fresh, Locate, Segment

# On the analytic model: a sample costs 8 NFE, a localization 1, a refinement 5.


class TestAdaptiveLoTTS(StrategyConformance):
    """Early stop aside, which leaves money on purpose."""

    def strategy(self) -> Strategy:
        return AdaptiveLoTTS(worth=0.0)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.localize() + costs.refine()


class TestWide(TestAdaptiveLoTTS):
    def strategy(self) -> Strategy:
        return AdaptiveLoTTS(worth=0.0, width=3, initial=2)


def run(strategy: Strategy, pool: AnalyticPool | None = None, **arguments) -> SearchResult:
    with pool or AnalyticPool() as where:
        return search("red star", strategy=strategy, pool=where, **arguments)


def kinds(result: SearchResult) -> Counter[str]:
    return Counter(t.kind for t in result.trials if t.kind != "score")


def test_one_image_is_plain_sampling():
    assert np.array_equal(run(AdaptiveLoTTS(), images=1, seed=5).image, run(BestOfN(), images=1, seed=5).image)


def test_it_is_ahead_of_lotts_and_of_best_of_n():
    adaptive, lotts, best = (
        np.array([run(strategy, nfe=114, seed=seed).score for seed in range(12)])
        for strategy in (AdaptiveLoTTS(), LoTTS(), BestOfN())
    )
    assert np.mean(adaptive - lotts) > 0.01
    assert np.mean(adaptive - best) > 0.03


def test_it_refines_the_refined_inside_fresh_masks_of_their_own():
    result = run(AdaptiveLoTTS(worth=0.0), nfe=150, seed=2)
    assert max(len(t.lineage) for t in result.trials if t.kind == "refine") > 2
    located = [t.parent_id for t in result.trials if t.kind == "localize"]
    assert len(located) == len(set(located))
    refined = [t.parent_id for t in result.trials if t.kind == "refine"]
    assert set(refined) == set(located)
    assert len({t.lineage for t in result.trials if t.kind == "refine"}) == len(refined)


class Spoiler(AnalyticPool):
    """Refinements bring nothing: their images are dark, and score 0."""

    def submit(self, work):
        future = super().submit(work)
        if isinstance(work, Segment) and work.renoise is not None:
            result = future.result()
            future = Future()
            future.set_result(replace(result, image=np.zeros_like(result.image)))
        return future


def test_the_budget_goes_to_new_images_where_refining_brings_nothing():
    usual = kinds(run(AdaptiveLoTTS(worth=0.0), nfe=200))
    vain = kinds(run(AdaptiveLoTTS(worth=0.0), Spoiler(), nfe=200))
    assert vain["sample"] > 2 * usual["sample"]
    assert vain["refine"] < usual["refine"] / 2


def test_new_images_are_not_wanted_where_they_cannot_win():
    """Refined images are far better here than new ones."""
    found = kinds(run(AdaptiveLoTTS(worth=0.0, initial=2), nfe=200))
    assert found["sample"] <= 5 and found["refine"] > 20


def test_it_stops_early_and_says_what_it_saved():
    result = run(AdaptiveLoTTS(worth=0.3), nfe=2000)
    ledger = result.ledger
    assert ledger.stopped == "no trial is expected to improve the score by 0.3 of its spread"
    assert ledger.left.nfe == 2000 - ledger.nfe > 1000
    assert not run(AdaptiveLoTTS(worth=0.0), nfe=300).ledger.stopped


def test_unsure_masks_are_not_refined():
    result = run(AdaptiveLoTTS(worth=0.0, unsure=1.0), nfe=100)
    assert kinds(result)["refine"] == 0
    assert kinds(result)["localize"] <= kinds(result)["sample"]
    assert result.ledger.nfe > 100 - 8


def test_survivors_become_fewer():
    result = run(AdaptiveLoTTS(worth=0.0, initial=8), nfe=30 * 8)
    rows = {t.trial_id: t for t in result.trials if t.score is not None and t.kind != "score"}
    late = [t for t in result.trials if t.kind == "refine" and t.nfe_cum > 0.8 * 30 * 8]
    assert late
    for trial in late:
        before = sorted((t.score for t in rows.values() if t.nfe_cum < trial.nfe_cum - trial.nfe), reverse=True)
        assert rows[trial.parent_id].score >= before[1]


def test_a_given_image_is_refined_and_nothing_else():
    given = run(BestOfN(), images=1, seed=4)
    result = run(AdaptiveLoTTS(worth=0.0), nfe=40, image=given.image, seed=1)
    assert kinds(result)["sample"] == 0 and kinds(result)["encode"] == 1 and kinds(result)["refine"] >= 5
    assert result.score >= given.score
    with pytest.raises(BudgetTooSmall, match="one refinement, which costs 6 NFE"):
        run(AdaptiveLoTTS(), nfe=5.5, image=given.image)


def test_a_search_that_may_restart_makes_new_images_beside_the_given_one():
    good = run(BestOfN(), nfe=400, seed=4)
    bad = np.zeros_like(good.image)

    def lost(work):
        return Failure("no mask") if isinstance(work, Locate) else None

    kept, left = (
        run(AdaptiveLoTTS(), AnalyticPool(fail=lost), nfe=60, image=bad, restart=restart) for restart in (False, True)
    )
    assert not kinds(kept)["sample"] and kinds(left)["encode"] == 1 and kinds(left)["sample"] > 1
    assert left.score > kept.score
    assert kept.trials[0].search_id != left.trials[0].search_id
    assert run(AdaptiveLoTTS(), nfe=20, image=good.image, restart=True).score >= good.score
    images = run(AdaptiveLoTTS(), images=4, image=bad, restart=True)
    assert kinds(images)["encode"] == 1 and images.ledger.images == 4


def test_the_trajectory_stands_in_for_half_of_the_draws_of_the_default_mask():
    both = ErrorContrastMask(levels=(400,), draws=4)
    costs = Costs(8, True, replace(analytic_info().defaults, mask=both))
    fused = FusionMask(0.3, (replace(both, ratio=0.3, draws=2), TrajectoryMask()), (2.0, 1.0))
    assert AdaptiveLoTTS(ratio=0.3).mask_source(costs) == AdaptiveMosaic(ratio=0.3).mask_source(costs) == fused
    assert AdaptiveLoTTS().localization(costs).nfe == LoTTS().localization(costs).nfe / 2 == 2
    assert LoTTS().mask_source(costs) == AdaptiveLoTTS(mask=both).mask_source(costs) == both
    assert AdaptiveLoTTS().mask_source(replace(costs, traced=False)) == both
    single = replace(costs, defaults=analytic_info().defaults)
    assert AdaptiveLoTTS().mask_source(single) == single.defaults.mask


def test_failures_end_no_search():
    def fail(work):
        broken = isinstance(work, Locate) or (isinstance(work, Segment) and work.noise == Fresh(1))
        return Failure("lost") if broken else None

    result = run(AdaptiveLoTTS(worth=0.0), AnalyticPool(fail=fail), nfe=100)
    assert {t.status for t in result.trials if t.kind == "localize"} == {"failed"}
    assert sum(t.kind == "sample" and t.status == "done" for t in result.trials) > 5


def test_a_budget_of_time_is_used_to_its_end():
    with AnalyticPool() as pool, seconds_as_requests(pool):
        result = search("red star", strategy=AdaptiveLoTTS(worth=0.0), pool=pool, seconds=100)
    assert result.status == "seconds" and kinds(result)["refine"] > 5


def test_wrong_settings_are_refused():
    with pytest.raises(BadInput, match="width must be 1 or more, not 0"):
        AdaptiveLoTTS(width=0)
    with pytest.raises(BadInput, match="worth must be 0 or more, not -1"):
        AdaptiveLoTTS(worth=-1)


def test_no_more_is_begun_than_the_budget_pays_for(monkeypatch):
    calls = Counter[str]()
    for name in ("arms", "add_image"):
        method = getattr(adaptive_lotts._State, name)
        monkeypatch.setattr(
            adaptive_lotts._State, name, lambda self, name=name, method=method: calls.update([name]) or method(self)
        )
    costs = Costs(8, True, analytic_info().defaults)
    many = AdaptiveLoTTS(initial=1000, worth=0.0)
    assert many.plan(Budget(images=3), costs).trials == {"sample": 3}
    assert many.plan(Budget(nfe=39), costs).trials == {"sample": 4}
    assert many.plan(Budget(seconds=1, images=2000), costs).trials == {"sample": 1000}
    assert kinds(run(many, nfe=39))["sample"] == calls["add_image"] == 4
    calls.clear()
    assert kinds(run(AdaptiveLoTTS(width=1000, worth=0.0), nfe=39))["refine"]
    assert calls["arms"] <= 2 * (39 // 5), "each worker looks once, and again after each trial"


def test_refinements_as_dear_as_samples_are_planned_for():
    costs = Costs(8, True, analytic_info().defaults)
    assert AdaptiveLoTTS(temporal=False).plan(Budget(images=4), costs).nfe == 4 * 9
    assert AdaptiveLoTTS().plan(Budget(nfe=50), costs).nfe == 50
    with pytest.raises(BadInput, match="budget in NFE, images or FLOPs"):
        AdaptiveLoTTS().plan(Budget(seconds=4), costs)
