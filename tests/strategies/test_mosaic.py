"""Mosaic: its conformance, its special cases, and its choice against all that there is to choose from."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lotts_search import search
from lotts_search.core import composing
from lotts_search.core.result import SearchResult
from lotts_search.core.strategy import Cost, Costs, Plan, Strategy
from lotts_search.errors import BadInput
from lotts_search.strategies.lotts import LoTTS
from lotts_search.strategies.mosaic import MOST_CHILDREN, Mosaic
from lotts_search.strategies.resampling import Resampling
from lotts_search.strategies.svdd import SVDD
from lotts_search.testing import AnalyticPool
from lotts_search.testing.analytic import Mixture, analytic_info
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.mosaics import mosaic
from lotts_search.work.requests import ScoreMosaics


class TestMosaic(StrategyConformance):
    images_are_steps = True

    def strategy(self) -> Strategy:
        return Mosaic(children=3, regions=2)


class TestExactMosaic(StrategyConformance):
    images_are_steps = True

    def strategy(self) -> Strategy:
        return Mosaic(children=3, regions=2, exact=True)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return None  # a step whose regions all choose one child leaves the NFE of its composed prediction


class TestMosaicOfTheMiddleSteps(StrategyConformance):
    images_are_steps = True

    def strategy(self) -> Strategy:
        return Mosaic(first=0.3, last=0.6, mosaics=10, regions=3)


class TestMosaicOfOneStart(StrategyConformance):
    images_are_steps = True

    def strategy(self) -> Strategy:
        return Mosaic(children=3, regions=2, choose_start=False)


class TestLocalMosaic(StrategyConformance):
    def strategy(self) -> Strategy:
        return Mosaic(children=3, regions=2, local=True)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return None  # under a budget of images, several refinements' steps go into one

    def impossible(self) -> list[Strategy]:
        return [*super().impossible(), Mosaic(local=True, start=self.costs.steps - 1), Mosaic(regions=7)]


def run(strategy: Strategy, **arguments: Any) -> tuple[SearchResult, AnalyticPool]:
    with AnalyticPool() as pool:
        return search("red star", strategy=strategy, pool=pool, **arguments), pool


def test_one_child_is_the_plain_sample() -> None:
    plain, _ = run(Resampling(), nfe=8)
    result, _ = run(Mosaic(children=1), nfe=8)
    assert np.array_equal(result.image, plain.image)


@pytest.mark.parametrize("settings", [{"regions": 1}, {"first": 1.0}])
def test_one_region_is_svdd(settings: dict[str, Any]) -> None:
    for seed in range(3):
        one, _ = run(Mosaic(children=4, **settings), nfe=32, seed=seed)
        other, _ = run(SVDD(children=4, choose_start=True), nfe=32, seed=seed)
        assert np.array_equal(one.image, other.image)
        assert [t.trial_id for t in one.trials] == [t.trial_id for t in other.trials]


def test_the_start_is_chosen_among_as_many_as_there_are_children() -> None:
    """The x0 predictions of pure noise are all alike on the analytic model, so none is composed there."""
    result, _ = run(Mosaic(children=4, regions=2), nfe=32)
    starts = [t.trial_id for t in result.trials if t.kind == "sample"]
    assert len({t.parent_id for t in result.trials if t.kind == "score"} & set(starts)) == 4
    one, _ = run(Mosaic(children=4, regions=2, choose_start=False), nfe=29)
    assert [t.lineage for t in one.trials if t.kind == "sample"] == [("seed 0",)]


def test_the_choice_is_the_best_of_all_combinations_where_rewards_add_up() -> None:
    """The score of the analytic model is a sum over positions, so the best of the M^R mosaics is known."""
    compared = 0
    for seed in range(4):
        result, pool = run(Mosaic(children=3, regions=2, mosaics=30), nfe=3 * 8, seed=seed)
        composed = [t for t in result.trials if t.kind == "compose"]
        for trial in composed:
            asked = [work for work in pool.asked if isinstance(work, ScoreMosaics) and len(work.images) == 3]
            image = result.images[trial.trial_id]
            (layers,) = [w.images for w in asked if _made_of(image, w.images)][:1]
            best = max(
                np.mean(mosaic(layers, np.array(choice).reshape(2, 2))[..., 0] > 127)
                for choice in itertools.product(range(3), repeat=4)
            )
            assert np.mean(image[..., 0] > 127) == pytest.approx(best)
            compared += 1
    assert compared > 5


class Quarter(Mixture):
    """A quarter of the analytic model, which is independent of the others."""

    shape = (1, 3, 3)


def quarters(strategy: Strategy, count: int, model: Mixture) -> list[int]:
    """Return the number of intact positions of each quarter of ``count`` images in four steps."""
    info = replace(analytic_info(4), latent=model.shape, image=model.shape[1:])
    found = []
    for seed in range(count):
        with AnalyticPool(info, model=model) as pool:
            image = search("red star", strategy=strategy, pool=pool, nfe=10, seed=seed).image
        intact = image[..., 0] > 127
        found += [
            int(intact[i : i + 3, j : j + 3].sum()) for i, j in itertools.product(range(0, len(intact), 3), repeat=2)
        ]
    return found


def test_where_rewards_add_up_a_region_has_the_law_of_svdd_in_that_region_alone() -> None:
    """So it has not that of SVDD with M^R children, whose draws are independent; and SVDD with M does worse."""
    settings: dict[str, Any] = {"children": 3, "choose_start": False}
    chosen = quarters(Mosaic(regions=2, mosaics=12, **settings), 40, Mixture())
    alone = quarters(SVDD(**settings), 120, Quarter())
    whole = quarters(SVDD(**settings), 40, Mixture())
    assert stats.ks_2samp(chosen, alone).pvalue > 0.1 and np.mean(chosen) == pytest.approx(np.mean(alone), abs=0.2)
    assert stats.ks_2samp(chosen, whole).pvalue < 1e-6


def _made_of(image: Any, layers: Any) -> bool:
    """Return whether each quarter of an image is that of a layer."""
    return any(
        np.array_equal(mosaic(layers, np.array(choice).reshape(2, 2)), image)
        for choice in itertools.product(range(len(layers)), repeat=4)
    )


def test_a_local_mosaic_of_one_child_is_the_plain_refinement_of_a_given_image() -> None:
    given, _ = run(Resampling(), nfe=8, seed=4)
    plain, _ = run(LoTTS(refinements=1), nfe=6, image=given.image)
    result, _ = run(Mosaic(children=1), nfe=6, image=given.image)
    (expected,) = [plain.images[t.trial_id] for t in plain.trials if t.kind == "refine"]
    (found,) = [result.images[t.trial_id] for t in result.trials if t.kind == "advance" and t.stop == 8]
    assert np.array_equal(found, expected)


def test_a_local_mosaic_changes_nothing_outside_its_mask_before_the_unmasked_steps() -> None:
    given, _ = run(Resampling(), nfe=8, seed=4)
    result, _ = run(Mosaic(children=4, integrate=0, ratio=0.3), nfe=40, image=given.image)
    (mask,) = [located.mask for located in result.located.values()]
    made = [t for t in result.trials if t.kind == "advance" and t.stop == 8]
    assert made and any(t.kind == "compose" for t in result.trials)
    for trial in made:
        changed = (result.images[trial.trial_id] != given.image).any(2)
        assert changed.any() and not changed[~mask].any()


def test_it_scores_as_many_mosaics_as_it_says() -> None:
    result, pool = run(Mosaic(children=4, regions=3), nfe=32)
    asked = [work for work in pool.asked if isinstance(work, ScoreMosaics)]
    assert [len(work.choices) for work in asked] == [18] * 8
    assert sum(t.scores for t in result.trials if t.kind == "compare") == 18 * 8
    assert result.ledger.scores == 18 * 8 + 32 + 1  # each x0 prediction, and the image
    result, pool = run(Mosaic(children=4, regions=3, mosaics=5), nfe=32)
    assert {len(work.choices) for work in pool.asked if isinstance(work, ScoreMosaics)} == {5}


@pytest.mark.parametrize(
    "settings",
    [
        {"children": 0}, {"children": 101}, {"regions": 0}, {"regions": 23}, {"mosaics": 0}, {"mosaics": 1001},
        {"first": 0.6, "last": 0.5}, {"first": -0.1}, {"last": 2},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Mosaic(**settings)


@pytest.mark.parametrize("choose_start", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_even_twice_as_many_children_as_allowed_can_be_composed(choose_start: bool, exact: bool) -> None:
    """The last image of ``adaptive-mosaic`` may get twice the NFE of a whole chain."""
    chains = Mosaic(children=MOST_CHILDREN, choose_start=choose_start, exact=exact)
    most = max(max(chains.counts(steps, 0, 2 * chains.whole(steps))) for steps in range(2, 50))
    assert most >= 2 * MOST_CHILDREN
    composing.checked([[most - 1]], most, 2)
