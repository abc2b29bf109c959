"""Strategies written for a test, run on the analytic model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lotts_search import SearchResult, search
from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy
from lotts_search.testing import AnalyticPool


@dataclass
class Scripted(Strategy):
    """Runs a function."""

    script: Callable[[Search], Awaitable[object]]

    async def run(self, search: Search) -> None:
        await self.script(search)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        raise NotImplementedError

    def settings(self) -> dict[str, object]:
        return {}


def run(
    script: Callable[[Search], Awaitable[object]], pool: AnalyticPool | None = None, **arguments: Any
) -> SearchResult:
    """A search by ``script``, by default with 1000 NFE."""
    with pool or AnalyticPool() as where:
        return search("red star", strategy=Scripted(script), pool=where, **{"nfe": 1000} | arguments)
