"""Mosaic: at every step draw several children, and continue in each region of the image with the noise of its best child.

Source: this project; the noise of a step is chosen as in SVDD-PM (Li et al. 2024), but region by region. The noise is white,
so noise composed of regions of several draws is, before the choice, a draw like any other. What a region's noise is worth
is estimated from the scores of mosaics, images put together of the children's x0 predictions by region. The arithmetic is in
:mod:`lotts_search.arithmetic.effects`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lotts_search.arithmetic.effects import design, estimate
from lotts_search.core.chains import Chains
from lotts_search.core.localized import Localized
from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    ModelInfo,
    Plan,
    Scored,
    Search,
    gather_completed,
    repeat,
    tunable,
)
from lotts_search.errors import BadInput


@dataclass
class MosaicChains(Chains):
    """Chains that at every step choose among their children region by region.

    All children are scored whole. Then mosaics are scored that show in every region a random child, which costs no network
    row and no decoding, and the effects of all regions and children on the score are estimated together. The noisier the
    verifier, the smaller are the estimates, and the more alike in neighbouring regions.

    Attributes:
        children: M, children per step.
        regions: the image is divided into regions x regions tiles.
        mosaics: mosaics scored per step; None = two per tile.
        exact: compute the x0 prediction of a composed candidate, for one NFE more per step; otherwise it is composed of the
            children's predictions.
        first, last: shares of the trajectory between which regions are selected, 0..1; at other steps the best child
            continues.
    """

    children: int = 4
    regions: int = 4
    mosaics: int | None = None
    exact: bool = False
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_minimum(regions=1, mosaics=1)
        self.check_range("first", 0, self.last)
        self.check_range("last", self.first, 1)

    @property
    def beside(self) -> int:
        return int(self.exact)

    async def choose(self, search: Search, children: list[Scored]) -> Candidate:
        best = max(children, key=lambda child: child.score).candidate
        if len(children) == 1 or self.regions == 1 or not self.first <= best.step / search.steps <= self.last:
            return best
        count, shape = len(children), (self.regions, self.regions)
        candidates = [child.candidate for child in children]
        mosaics = design(count, shape, self.mosaics or 2 * self.regions**2, search.rng)
        scores = [child.score for child in children] + await search.compare(candidates, mosaics)
        alone = np.stack([np.full(shape, number) for number in range(count)])
        effects = estimate(np.concatenate([alone, mosaics]), scores, count)
        composed = await search.compose(candidates, effects.best, exact=self.exact)
        if self.exact:
            await search.score(composed)
        return composed


@dataclass
class Mosaic(MosaicChains, Localized):
    """At every step draw M children by new noise; each region continues with the noise of the child that is best there.

    All children are scored whole. Then mosaics are scored that show in every region a random child, which costs no network
    row and no decoding, and the effects of all regions and children on the score are estimated together. The noisier the
    verifier, the smaller are the estimates, and the more alike in neighbouring regions.

    Attributes:
        local: select refinements of a first image inside its mask, as always with a given image. The settings of masks and
            refinements apply to it.
    """

    source = "lotts-search; steps as in SVDD-PM (Li et al. 2024), selected by region"
    formula = "chains · (1 + children · (T - 1)); exact: at most chains · (1 + (children + 1) · (T - 1))"
    space = tunable(children=(2, 4, 8), regions=(2, 4, 6), exact=(False, True))

    local: bool = False

    def check(self, costs: Costs, info: ModelInfo) -> None:
        super().check(costs, info)
        if self.local and self.begin(costs) > costs.steps - 2:
            raise BadInput(f"start of a local mosaic must be within 0..{costs.steps - 2}, not {self.begin(costs)}")

    async def run(self, search: Search) -> None:
        if not self.local and search.image is None:
            await super().run(search)
            return
        search.check_noise()
        located = await self.located_root(search)
        if located is None:
            return
        parent, mask = located
        image = self.refinement(search.costs)

        async def refine(seed: int, nfe: int) -> None:
            # Refinements differ in more than the noise of a step, so they are not selected before their first step.
            state = await self.refine(search, parent, mask, seed, self.begin(search.costs) + 1)
            await self.chain(search, state, nfe)

        if not search.budget.left.counted:
            await repeat(lambda seed: refine(seed, self.whole(image.nfe - 1)), None)
            return
        chains = self.shares(search.budget.left, image, first=1)
        await gather_completed(*(refine(seed, nfe) for seed, nfe in enumerate(chains)))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        if not self.local:
            return super().plan(budget, costs)
        left = budget.minus(costs.sample)
        if not left.pays(self.located_refinement(costs)):
            return Plan.of(("sample", 1, costs.sample))
        localization = self.localization(costs)
        chains = self.shares(left.minus(localization), self.refinement(costs), first=1)
        before = ("sample", 1, costs.sample), ("localize", 1, localization), ("refine", len(chains), Cost(1))
        return self.planned(chains, costs, *before)

    def located_refinement(self, costs: Costs) -> Cost:
        return self.localization(costs) + Cost(1 + self.narrowest(self.refinement(costs).nfe - 1), 1)

    def least(self, costs: Costs, image: bool = False) -> Cost:
        if image:
            return self.located_refinement(costs)
        return costs.sample if self.local else Chains.least(self, costs)
