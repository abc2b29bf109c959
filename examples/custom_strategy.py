"""A strategy of one's own: sample images, refine each of the best once. ``python examples/custom_strategy.py`` runs it, and
``lotts-search generate "$PROMPT" --strategy examples.custom_strategy:RefineBest --set keep=3 --nfe 120``."""

from dataclasses import dataclass

import lotts_search
from lotts_search.core.strategy import Budget, Candidate, Costs, Plan, Search, Strategy, gather_completed


@dataclass
class RefineBest(Strategy):
    """As many images as leave enough for one refinement of each of the best.

    Attributes:
        keep: how many of the best are refined.
    """

    source, formula = "this example", "n · T + keep · (L + T - t0)"
    keep: int = 2

    async def run(self, search: Search) -> None:
        async def mend(image: Candidate) -> None:
            await search.refine(image, await search.localize(image), seed=0)

        trials = self.plan(search.budget.left, search.costs).trials
        images = await gather_completed(*(search.sample(seed) for seed in range(trials["sample"])))
        images.sort(key=lambda image: image.score or 0.0, reverse=True)
        await gather_completed(*(mend(image) for image in images[: trials.get("refine", 0)]))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        mending = costs.localize() + costs.refine()
        refined = min(self.keep, budget.count(costs.sample + mending) or 0)
        samples = budget.minus(refined * mending).count(costs.sample) or 1
        kinds = ("sample", samples, costs.sample), ("localize", refined, costs.localize())
        return Plan.of(*kinds, ("refine", refined, costs.refine()))


if __name__ == "__main__":
    print(lotts_search.search("top left red star, center blue ring on gray", strategy=RefineBest(), nfe=80))
