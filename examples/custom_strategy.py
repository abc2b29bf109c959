"""A custom strategy: sample images and refine each of the best once.

python examples/custom_strategy.py
lotts-search generate "$PROMPT" --strategy examples.custom_strategy:RefineBest --set keep=3 --nfe 120
"""

from dataclasses import dataclass

import lotts_search
from lotts_search.core.strategy import Budget, Candidate, Costs, Plan, Search, Strategy, gather_completed, score_of


@dataclass
class RefineBest(Strategy):
    """Sample as many images as leave enough for one refinement of each of the best.

    Attributes:
        keep: how many of the best are refined."""

    keep: int = 2

    async def run(self, search: Search) -> None:
        async def refine(image: Candidate) -> None:
            await search.refine(image, await search.localize(image), seed=0)

        trials = self.plan(search.budget.left, search.costs).trials
        images = await gather_completed(*(search.sample(seed) for seed in range(trials["sample"])))
        best = sorted(images, key=score_of, reverse=True)[: trials.get("refine", 0)]
        await gather_completed(*(refine(image) for image in best))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        localize, refine = costs.localize(), costs.refine()
        count = min(self.keep, budget.count(costs.sample + localize + refine) or 0)
        samples = budget.minus(count * (localize + refine)).count(costs.sample) or 1
        return Plan.of(("sample", samples, costs.sample), ("localize", count, localize), ("refine", count, refine))


if __name__ == "__main__":
    print(lotts_search.search("top left red star, center blue ring on gray", strategy=RefineBest(), nfe=80))
