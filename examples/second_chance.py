"""A custom strategy: sample a few images and refine only the best of them.

lotts-search generate "$PROMPT" --strategy examples.second_chance:SecondChance --nfe 200 --set images=4
"""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy, gather_completed, repeat


@dataclass
class SecondChance(Strategy):
    """Sample a few images, then refine the best one where it looks wrong until the budget is spent.

    Attributes:
        images: images from pure noise.
    """

    images: int = 4

    async def run(self, search: Search) -> None:
        await gather_completed(*(search.sample(seed) for seed in range(self.images)))
        best = search.best
        costs = search.costs
        if best is None or not search.budget.left.pays(costs.localize() + costs.refine()):
            return
        mask = await search.localize(best)
        await repeat(lambda seed: search.refine(best, mask, seed=seed), search.budget.left.count(costs.refine()))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        samples = budget.paid(costs.sample, self.images)
        left = budget.minus(samples * costs.sample)
        if not left.pays(costs.localize() + costs.refine()):
            return Plan.of(("sample", samples, costs.sample))
        refined = left.minus(costs.localize()).paid(costs.refine())
        return Plan.of(
            ("sample", samples, costs.sample),
            ("localize", 1, costs.localize()),
            ("refine", refined, costs.refine()),
        )
