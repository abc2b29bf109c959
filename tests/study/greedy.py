"""An adaptive strategy: what it does next hangs on scores, on what is left and on chance."""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy, gather_completed


@dataclass
class Greedy(Strategy):
    """Refines whatever is best when it looks."""

    async def run(self, search: Search) -> None:
        async def branch(seed: int) -> None:
            parent = await search.sample(seed)
            for step in range(8):
                assert search.best is not None
                mask = await search.localize(search.best if step % 2 else parent)
                start = int(search.rng.integers(1, 6)) if search.budget.remaining > 30 else 6
                parent = await search.refine(search.best, mask, start=start, seed=int(search.rng.integers(9)))
            partial = await search.sample(seed + 10, stop=4)
            if await search.score(partial) > 0.5:
                await search.advance(partial)

        await gather_completed(*(branch(seed) for seed in range(3)))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        raise NotImplementedError
