"""Resampling: one sample and no selection, which is what a diffusion model does without a search."""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy


@dataclass
class Resampling(Strategy):
    """Sample one image from pure noise, whatever the budget.

    Attributes:
        start: seed of the image.
    """

    source = "plain sampling"
    formula = "T"
    nested = True

    start: int = 0

    async def run(self, search: Search) -> None:
        await search.sample(self.start)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.of(("sample", 1, costs.sample))
