"""New images steered by region, and refinements, under one budget."""

from __future__ import annotations

from collections import Counter

import numpy as np

from lotts_search import SearchResult, search
from lotts_search.core.strategy import Cost, Costs, Plan, Strategy
from lotts_search.strategies.adaptive_lotts import AdaptiveLoTTS
from lotts_search.strategies.adaptive_mosaic import AdaptiveMosaic
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance

# On the analytic model: a sample costs 8 NFE, a localization 1, a refinement 5, a chain of two children 16.


class TestAdaptiveMosaic(StrategyConformance):
    """Early stop aside, which leaves money on purpose."""

    images_are_steps = True

    def strategy(self) -> Strategy:
        return AdaptiveMosaic(children=2, regions=2, worth=0.0)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.localize() + costs.refine()


class TestExactAdaptiveMosaic(StrategyConformance):
    images_are_steps = True

    def strategy(self) -> Strategy:
        return AdaptiveMosaic(children=3, regions=2, exact=True, worth=0.0)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return None  # a step whose regions all choose one child leaves the NFE of its composed prediction


def run(strategy: Strategy, **arguments) -> SearchResult:
    with AnalyticPool() as pool:
        return search("red star", strategy=strategy, pool=pool, **arguments)


def made(result: SearchResult) -> set[str]:
    return {t.image for t in result.trials if t.image and t.stop == t.steps}


def test_with_one_child_it_is_adaptive_lotts():
    for nfe in (30, 70):
        one = run(AdaptiveMosaic(children=1, worth=0.0), nfe=nfe)
        assert made(one) == made(run(AdaptiveLoTTS(worth=0.0), nfe=nfe))
        assert not {"compare", "compose"} & {t.kind for t in one.trials}


def test_without_noise_of_the_solver_new_images_are_plain_samples():
    kinds = Counter(t.kind for t in run(AdaptiveMosaic(children=4), nfe=40, eta=0.0).trials)
    assert not kinds["compose"] and kinds["refine"]


def test_what_pays_for_nothing_more_goes_into_the_image():
    """After 16 NFE for a chain of two children, 4 are left: no sample, and no localization with a refinement."""
    result = run(AdaptiveMosaic(children=2), nfe=20)
    assert result.ledger.nfe == 20
    assert len([t for t in result.trials if t.kind == "sample"]) == 3
    counts = Counter(t.start for t in result.trials if t.kind == "advance" and t.stop < t.steps)
    assert [counts[step] for step in range(7)] == [3, 3, 3, 2, 2, 2, 2]


def test_it_refines_and_begins_anew():
    kinds = Counter(t.kind for t in run(AdaptiveMosaic(children=2, regions=2, worth=0.0), nfe=120).trials)
    assert kinds["refine"] >= 2 and kinds["sample"] >= 2 and kinds["compare"]


def test_it_is_ahead_of_adaptive_lotts():
    mosaic, adaptive = (
        np.array([run(strategy, nfe=60, seed=seed).score for seed in range(10)])
        for strategy in (AdaptiveMosaic(), AdaptiveLoTTS())
    )
    assert np.mean(mosaic - adaptive) > 0


def test_it_begins_with_two_images_where_the_budget_pays_for_them():
    for nfe, images in ((31, 1), (32, 2), (40, 2)):
        result = run(AdaptiveMosaic(children=2, choose_start=False, initial=None, worth=1e6), nfe=nfe - 2)
        assert len([t for t in result.trials if t.kind == "sample"]) == images, nfe
