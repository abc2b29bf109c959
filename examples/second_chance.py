"""A strategy in one file: many images, and a second chance for the best one alone.

lotts-search generate "$PROMPT" --strategy examples.second_chance:SecondChance --nfe 200 --set images=4
"""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy, gather_completed, repeat


@dataclass
class SecondChance(Strategy):
    """Draws some images, then refines the best of them where it looks wrong until the budget ends.

    Attributes:
        images: images from pure noise.
    """

    images: int = 4

    async def run(self, search: Search) -> None:
        await gather_completed(*(search.sample(seed) for seed in range(self.images)))
        best, costs = search.best, search.costs
        if best is None or not search.budget.left.pays(costs.localize() + costs.refine()):
            return
        mask = await search.localize(best)
        await repeat(lambda seed: search.refine(best, mask, seed=seed), search.budget.left.count(costs.refine()))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        samples = budget.paid(costs.sample, self.images)
        left = budget.minus(samples * costs.sample)
        chances = int(left.pays(costs.localize() + costs.refine()))
        more = chances * left.minus(chances * costs.localize()).paid(costs.refine())
        return Plan.of(
            ("sample", samples, costs.sample),
            ("localize", chances, costs.localize()),
            ("refine", more, costs.refine()),
        )
