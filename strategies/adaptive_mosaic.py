"""AdaptiveMosaic: new images are steered region by region, and the search decides as it goes between them and refinements.

Source: this project; it joins :mod:`lotts_search.strategies.mosaic` and :mod:`lotts_search.strategies.adaptive_lotts`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lotts_search.core.strategy import Budget, Candidate, Cost, Costs, Search, tunable
from lotts_search.strategies.adaptive_lotts import AdaptiveLoTTS
from lotts_search.strategies.mosaic import MosaicChains


@dataclass
class AdaptiveMosaic(AdaptiveLoTTS, MosaicChains):
    """Images steered region by region, and refinements of the best ones: next comes what is expected to improve most for its cost.

    A new image is a chain with several children per step, as in ``mosaic``, and with fewer where the budget does not pay for a
    whole one. Refinements and decisions are those of ``adaptive-lotts``. Without noise of the solver (eta = 0) a
    trajectory cannot branch: new images are then plain samples. Under a budget of N images alone, the search takes the
    steps of N samples.
    """

    source = "lotts-search; steps as in SVDD-PM (Li et al. 2024), selected by region; decisions as in AdaptiveLoTTS"
    formula = (
        "at most the budget; a new image children · T, a refinement T - t0 or, confined, less, its parent's mask L once"
    )
    space = tunable(children=(2, 4, 8), regions=(2, 4, 6), initial=(1, 2, 3), worth=(0.0, 0.05, 0.1))

    def __post_init__(self) -> None:
        AdaptiveLoTTS.__post_init__(self)
        MosaicChains.__post_init__(self)

    async def run(self, search: Search) -> None:
        strategy = self if search.eta else replace(self, children=1)
        await AdaptiveLoTTS.run(strategy, search)

    def limits(self, budget: Budget, costs: Costs) -> Budget:
        return budget.allowed(costs.sample) if budget.counted else budget

    def image_cost(self, left: Budget, costs: Costs) -> Cost:
        return self.chain_cost(costs, 0, self._afforded(left, costs))

    def image_costs(self, costs: Costs) -> tuple[Cost, ...]:
        whole = self.whole(costs.steps)
        return costs.sample, self.chain_cost(costs, 0, whole), self.chain_cost(costs, 0, 2 * whole)

    async def new_image(self, search: Search, seed: int, left: Budget) -> Candidate | None:
        return await self.sample(search, seed, self._afforded(left, search.costs))

    def _afforded(self, left: Budget, costs: Costs) -> int:
        """Return the NFE of the next new image: a whole chain, or less where the budget does not pay for it. What would be left
        and pay for nothing more goes into this image too."""
        whole, narrowest = self.whole(costs.steps), self.narrowest(costs.steps)
        nfe = self.most(left, costs, 0, whole) or narrowest
        rest = left.minus(self.chain_cost(costs, 0, nfe))
        if (
            self.children == 1
            or not left.counted
            or rest.pays(costs.sample)
            or rest.pays(self.located_refinement(costs))
        ):
            return nfe
        return self.most(left, costs, 0, 2 * whole) or narrowest
