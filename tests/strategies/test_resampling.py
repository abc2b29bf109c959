"""Resampling and more steps."""

from __future__ import annotations

import pytest

from lotts_search import BadInput, Budget, search
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import Plan, Strategy
from lotts_search.strategies.more_steps import MoreSteps
from lotts_search.strategies.resampling import Resampling
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.requests import Segment


class TestResampling(StrategyConformance):
    def strategy(self) -> Strategy:
        return Resampling()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return None


class TestMoreSteps(StrategyConformance):
    def strategy(self) -> Strategy:
        return MoreSteps()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.step

    def test_what_is_left_pays_for_nothing_more(self) -> None:
        """Images without NFE stand for their steps, so NFE alone can be left over."""
        for budget in (b for b in self.budgets() if "nfe" in b and "flops" not in b):
            assert budget["nfe"] - self.run(**budget).ledger.nfe < 1


def test_all_steps_go_into_one_trajectory():
    with AnalyticPool() as pool:
        result = search("red star", strategy="more-steps", pool=pool, nfe=29.5)
    (work,) = [w for w in pool.asked if isinstance(w, Segment)]
    assert (work.sampling.steps, work.stop, result.ledger.nfe) == (29, 29, 29)


def test_images_stand_for_their_steps_up_to_the_most():
    with AnalyticPool() as pool:
        assert search("red star", strategy="more-steps", pool=pool, images=9).ledger.nfe == 72
        assert search("red star", strategy=MoreSteps(most=50), pool=pool, images=9).ledger.nfe == 50


def test_time_alone_says_nothing_about_the_number_of_steps():
    costs = TestMoreSteps().costs
    with pytest.raises(BadInput, match="budget in NFE, images or FLOPs"):
        MoreSteps().plan(Budget(seconds=3), costs)
