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

MOST_CHILDREN = 100
"""Most children per step. A mosaic is made of at most 256 candidates, and the last image of a search may get twice as many."""
MOST_MOSAICS = 1000
"""Most mosaics per step: the time of an estimate grows with the cube of their number."""
MOST_REGIONS = 22
"""Most regions along a side, which have two mosaics per tile by default."""


@dataclass
class MosaicChains(Chains):
    """Chains that at every step choose among their children region by region, as :class:`Mosaic` describes.

    Attributes:
        children: M, children per step, 1..100.
        regions: the image is divided into regions x regions tiles, 1..22.
        mosaics: mosaics scored per step, 1..1000; None = two per tile.
        exact: compute the x0 prediction of a composed candidate, for one NFE more per step; otherwise it is composed of the
            children's predictions.
        first, last: shares of the trajectory between which regions are selected, 0..1; at other steps the best child
            continues.
    """

    children: int = 4
    choose_start: bool = True
    regions: int = 4
    mosaics: int | None = None
    exact: bool = False
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("children", 1, MOST_CHILDREN)
        self.check_range("regions", 1, MOST_REGIONS)
        self.check_range("mosaics", 1, MOST_MOSAICS)
        self.check_range("first", 0, self.last)
        self.check_range("last", self.first, 1)

    def check(self, costs: Costs, info: ModelInfo) -> None:
        super().check(costs, info)
        if self.regions > (most := min(info.latent[1:])):
            raise BadInput(f"regions must be within 1..{most}, the cells of a side of the latent, not {self.regions}")

    @property
    def beside(self) -> int:
        return int(self.exact)

    def selection(self, costs: Costs, step: int, count: int) -> Cost:
        return costs.scores(self._mosaics) if self._selects(step / costs.steps, count) else Cost()

    async def choose(self, search: Search, children: list[Scored]) -> Candidate:
        best = max(children, key=lambda child: child.score).candidate
        if not self._selects(best.step / search.steps, len(children)):
            return best
        count, shape = len(children), (self.regions, self.regions)
        candidates = [child.candidate for child in children]
        mosaics = design(count, shape, self._mosaics, search.rng)
        scores = [child.score for child in children] + await search.compare(candidates, mosaics)
        alone = np.stack([np.full(shape, number) for number in range(count)])
        effects = estimate(np.concatenate([alone, mosaics]), scores, count)
        composed = await search.compose(candidates, effects.best, exact=self.exact)
        if self.exact:
            await search.score(composed)
        return composed

    @property
    def _mosaics(self) -> int:
        return self.mosaics or 2 * self.regions**2

    def _selects(self, share: float, count: int) -> bool:
        """Return whether regions are selected among this many children at this share of the trajectory."""
        return count > 1 and self.regions > 1 and self.first <= share <= self.last


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

    confines = False
    source = "lotts-search; steps as in SVDD-PM (Li et al. 2024), selected by region"
    formula = "chains · children · T; exact: at most chains · (children + 1) · T"
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
        # Refinements differ in more than the noise of a step, so they are not selected before their first step.
        first = self.begin(search.costs) + 1

        async def refine(seed: int, nfe: int) -> None:
            state = await self.refine(search, parent, mask, seed, first)
            await self.chain(search, state, nfe)

        if not search.budget.left.counted:
            await repeat(lambda seed: refine(seed, self.whole(search.steps, first)), None)
            return
        chains = self.shares(search.budget.left, search.costs, first, search.costs.step)
        await gather_completed(*(refine(seed, nfe) for seed, nfe in enumerate(chains)))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        if not self.local:
            return super().plan(budget, costs)
        left = budget.minus(costs.sample)
        if not left.pays(self.located_refinement(costs)):
            return Plan.of(("sample", 1, costs.sample))
        localization = self.localization(costs)
        first = self.begin(costs) + 1
        chains = self.shares(left.minus(localization), costs, first, costs.step)
        before = ("sample", 1, costs.sample), ("localize", 1, localization), ("refine", len(chains), costs.step)
        return self.planned(chains, costs, first, *before)

    def refinement(self, costs: Costs) -> Cost:
        """Return the cost of a refinement with one child per step."""
        first = self.begin(costs) + 1
        return costs.step + self.chain_cost(costs, first, self.narrowest(costs.steps, first))

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return Localized.least(self, costs, image) if image or self.local else Chains.least(self, costs)
