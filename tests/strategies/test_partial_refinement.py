"""PartialRefinement: a chain of refinements in random regions, whose last image is returned."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from lotts_search import BadInput, Failure, SearchResult, search
from lotts_search.core.budget import Cost, Costs
from lotts_search.core.strategy import Budget, Plan, Strategy
from lotts_search.strategies.partial_refinement import PartialRefinement
from lotts_search.strategies.resampling import Resampling
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.masks import RandomMask, WholeMask
from lotts_search.work.requests import Segment, Work

# On the analytic model a sample costs 8 NFE and an iteration 5.


class TestPartialRefinement(StrategyConformance):
    def strategy(self) -> Strategy:
        return PartialRefinement()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return (costs.steps - costs.defaults.t0) * costs.step + costs.decode

    def impossible(self) -> list[Strategy]:
        return [PartialRefinement(start=8), PartialRefinement(start=-1)]


def run(strategy: Strategy, fail: Any = lambda work: None, **arguments: Any) -> SearchResult:
    with AnalyticPool(fail=fail) as pool:
        return search("red star", strategy=strategy, pool=pool, **arguments)


def test_each_iteration_refines_the_image_of_the_one_before_in_another_region() -> None:
    result = run(PartialRefinement(), nfe=8 + 6 * 5 + 4)
    refined = [t for t in result.trials if t.kind == "refine"]
    assert len(refined) == 6 and [t.mask_ratio for t in refined] == [0.25] * 6
    parents = [t.trial_id for t in result.trials if t.kind == "sample"] + [t.trial_id for t in refined]
    assert [t.parent_id for t in refined] == parents[:-1]
    assert len({located.mask.tobytes() for located in result.located.values()}) == 6


def test_the_last_image_is_returned_whatever_its_score() -> None:
    worse = 0
    for seed in range(12):
        result = run(PartialRefinement(), nfe=8 + 5 * 5, seed=seed)
        refined = [t for t in result.trials if t.kind == "refine"]
        assert result.best is not None and result.best.trial_id == refined[-1].trial_id
        assert result.score is not None and result.ledger.scores == 1
        before = Counter(round(float(np.mean(result.images[t.trial_id][..., 0] > 127)), 6) for t in refined[:-1])
        worse += result.score < max(before)
    assert worse > 2, "the last image was nearly always the best: this test cannot fail"


def test_an_iteration_that_fails_leaves_the_image_as_it_was() -> None:
    asked = []

    def fail(work: Work) -> Exception | None:
        if isinstance(work, Segment) and work.renoise is not None:
            asked.append(work)
            return Failure("lost") if len(asked) == 3 else None
        return None

    result = run(PartialRefinement(), fail=fail, nfe=8 + 3 * 5)
    refined = [t for t in result.trials if t.kind == "refine"]
    assert [t.status for t in refined] == ["done", "done", "failed"]
    assert result.best is not None and result.best.trial_id == refined[1].trial_id


def test_without_iterations_it_is_a_plain_sample() -> None:
    plain = run(Resampling(), nfe=8)
    for found in (run(PartialRefinement(), nfe=12), run(PartialRefinement(iterations=0), nfe=100)):
        assert np.array_equal(found.image, plain.image) and found.ledger.nfe == 8


def test_a_given_image_and_another_mask_are_taken() -> None:
    plain = run(Resampling(), nfe=8)
    result = run(PartialRefinement(mask=WholeMask(), start=5), nfe=9, image=plain.image)
    assert Counter(t.kind for t in result.trials) == {"encode": 1, "localize": 3, "refine": 3, "score": 1}
    assert (
        PartialRefinement(mask=RandomMask(0.5), iterations=2).plan(Budget(images=9), TestPartialRefinement().costs).nfe
        == 18
    )


def test_the_number_of_iterations_needs_a_budget() -> None:
    with pytest.raises(BadInput, match="budget in NFE, images or FLOPs"):
        run(PartialRefinement(), seconds=3)
    with pytest.raises(BadInput, match="iterations must be 0 or more"):
        PartialRefinement(iterations=-1)
