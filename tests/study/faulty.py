"""A strategy with a slip."""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy


@dataclass
class Faulty(Strategy):
    """Divides by zero after its first image."""

    async def run(self, search: Search) -> None:
        await search.sample(0)
        raise ZeroDivisionError("division by zero")

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.of(("sample", 1, costs.sample))
