"""SuccessiveHalving: who goes on at checkpoints, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lotts_search import BadInput, Failure, SearchResult, search
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import Plan, Strategy
from lotts_search.strategies.best_of_n import BestOfN
from lotts_search.strategies.successive_halving import SuccessiveHalving
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.requests import Predict, Work

# On the analytic model a sample has 8 steps, and by default checkpoints at 2, 3, 5 and 6.


class TestSuccessiveHalving(StrategyConformance):
    uses_time = True

    def strategy(self) -> Strategy:
        return SuccessiveHalving()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        """One sample more may cost several trials: see the next test."""
        return None

    def test_one_sample_more_would_exceed_the_budget(self) -> None:
        for limits in (Budget(nfe=64), Budget(nfe=100), Budget(images=3), Budget(flops=300_000)):
            plans = [SuccessiveHalving(samples=n).plan(Budget(images=99), self.costs) for n in range(1, 80)]
            costs = [(plan, Cost(plan.nfe, plan.images or 0, int(plan.flops or 0))) for plan in plans]
            paid = [plan for plan, cost in costs if limits.pays(cost)]
            assert SuccessiveHalving().plan(limits, self.costs) == paid[-1] != plans[-1]


def run(strategy: Strategy, fail: Any = lambda work: None, **arguments: Any) -> SearchResult:
    with AnalyticPool(fail=fail) as pool:
        return search("red star", strategy=strategy, pool=pool, **arguments)


def test_at_every_checkpoint_the_best_half_goes_on() -> None:
    result = run(SuccessiveHalving(samples=16), nfe=1000)
    scores = {t.parent_id: t.score for t in result.trials if t.kind == "score"}
    alive = [t for t in result.trials if t.kind == "sample"]
    assert len(alive) == 16
    for stop, fewer in ((3, 8), (5, 4), (6, 2), (8, 1)):
        kept = sorted((scores[t.trial_id] for t in alive), reverse=True)[:fewer]
        after = [t for t in result.trials if t.kind == "advance" and t.stop == stop]
        assert sorted((scores[t.parent_id] for t in after), reverse=True) == kept
        assert len({t.parent_id for t in after}) == fewer and all(len(t.lineage) == 1 for t in after)
        alive = after
    # 16 · 2 steps, and after each checkpoint the steps of those that go on, and one for each that ends there.
    assert result.ledger.nfe == 32 + (8 * 1 + 8) + (4 * 2 + 4) + (2 * 1 + 2) + (1 * 2 + 1) == 67
    assert result.ledger.images == 1


def test_nobody_ends_where_all_are_kept() -> None:
    for eta in (None, 0.0):
        found, plain = run(SuccessiveHalving(keep=1), nfe=40, eta=eta), run(BestOfN(), nfe=40, eta=eta)
        assert np.array_equal(found.image, plain.image) and found.ledger.nfe == plain.ledger.nfe == 40


def test_more_begin_and_the_best_is_better_than_that_of_as_many_nfe_of_whole_samples() -> None:
    found = [run(SuccessiveHalving(), nfe=80, seed=seed) for seed in range(24)]
    plain = [run(BestOfN(), nfe=80, seed=seed) for seed in range(24)]
    begun = sum(t.kind == "sample" for t in found[0].trials)
    assert begun > 1.5 * 10
    assert np.mean([r.score for r in found]) > np.mean([r.score for r in plain]) + 0.01


def test_a_sample_that_fails_is_left_out() -> None:
    asked = []

    def fail(work: Work) -> Exception | None:
        if isinstance(work, Predict):
            asked.append(work)
            return Failure("lost") if len(asked) <= 3 else None
        return None

    result = run(SuccessiveHalving(samples=4), fail=fail, nfe=1000)
    assert result.ledger.images == 1 and sum(t.status == "failed" for t in result.trials) == 3


def test_wrong_settings_are_refused() -> None:
    for settings, message in (
        ({"keep": 0.0}, "keep must be a share of the samples"),
        ({"interval": 5}, "interval must be a share"),
        ({"first": 0.9, "last": 0.1}, "first and last must be within 0..1"),
        ({"samples": 0}, "samples must be 1 or more"),
    ):
        with pytest.raises(BadInput, match=message):
            SuccessiveHalving(**settings)
