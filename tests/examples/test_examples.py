"""The examples: the strategy passes the conformance suite, and the programs run on the analytic model."""

from __future__ import annotations

from pathlib import Path

from examples.custom_strategy import RefineBest
from examples.second_chance import SecondChance
from lotts_search.core.budget import Cost, Costs
from lotts_search.core.strategy import Plan, Strategy
from lotts_search.testing.conformance import StrategyConformance


class TestSecondChance(StrategyConformance):
    def strategy(self) -> Strategy:
        return SecondChance()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost:
        return costs.refine() if "localize" in plan.trials else costs.localize() + costs.refine()


class TestCustomStrategy(StrategyConformance):
    def strategy(self) -> Strategy:
        return RefineBest()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost:
        return costs.sample

    def test_the_example_is_short(self) -> None:
        assert len(Path("examples/custom_strategy.py").read_text().splitlines()) <= 40
