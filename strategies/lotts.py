"""LoTTS (Algorithm 3): sample images, locate the defective region of each, resample only that; the best image wins.

Source: "LoTTS: Scale where it matters, training-free localized scaling for diffusion models". The depth-first search of
Algorithm 3: depth 0 samples the initial images; at each further depth MaskGen (Algorithm 1) locates the defects of an
image, and LocalizedResample (Algorithm 2) refines it k times. The verifier scores every image.
"""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.localized import Localized
from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Costs,
    Mask,
    Plan,
    Search,
    Span,
    repeat,
    score_of,
    tunable,
)
from lotts_search.errors import BadInput


@dataclass
class LoTTS(Localized):
    """Localized test-time search: sample images and refine each where its mask finds defects.

    What whole trees leave of the budget goes into more refinements of the best image that has a mask.

    Attributes:
        initial: images from pure noise; None = as many as the budget pays whole trees for.
        refinements: k, refinements of each located image.
        depth: D; above 1 the refined images are located and refined again.
    """

    source = "LoTTS: Scale where it matters, training-free localized scaling for diffusion models, Algorithm 3"
    formula = "initial · (T + L + refinements · (T - t0)) at depth 1; confined steps cost less"
    space = tunable(ratio=Span(0.2, 0.7), refinements=(1, 2, 3, 4, 6), depth=(1, 2))

    initial: int | None = None
    refinements: int = 2
    depth: int = 1

    def __post_init__(self) -> None:
        self.check_minimum(initial=1, refinements=1, depth=1)

    async def run(self, search: Search) -> None:
        count, depth = self._shape(search.budget.left, search.costs, search.image is not None)
        located: list[tuple[Candidate, Mask]] = []

        async def tree(seed: int) -> None:
            await descend(await self.root(search, seed), depth)

        async def descend(parent: Candidate, levels: int) -> None:
            if levels == 0:
                return
            mask = await self.locate(search, parent)
            located.append((parent, mask))

            async def child(seed: int) -> None:
                await descend(await self.refine(search, parent, mask, seed), levels - 1)

            await repeat(child, self.refinements)

        await repeat(tree, count)
        await self._spend_the_rest(search, located)

    async def _spend_the_rest(self, search: Search, located: list[tuple[Candidate, Mask]]) -> None:
        """Refine the best located image, or the best of all where none is located yet, until the budget is spent."""
        if located:
            parent, mask = max(located, key=lambda pair: score_of(pair[0]))
        elif search.best is not None and search.budget.left.pays(self.located_refinement(search.costs)):
            parent = search.best
            mask = await self.locate(search, parent)
        else:
            return
        count = search.budget.left.count(self.refinement(search.costs))
        await repeat(lambda i: self.refine(search, parent, mask, self.refinements + i), count)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        count, depth = self._shape(budget, costs)
        if count is None:
            raise BadInput("the number of images needs a budget in NFE, images or FLOPs")
        localize = self.localization(costs)
        refine = self.refinement(costs)
        masks = count * self._masks(depth)
        refined = masks * self.refinements
        left = budget.minus(count * costs.sample + masks * localize + refined * refine)
        if masks == 0 and left.pays(localize + refine):
            masks = 1
            left = left.minus(localize)
        if masks > 0:
            refined += left.count(refine) or 0
        return Plan.of(("sample", count, costs.sample), ("localize", masks, localize), ("refine", refined, refine))

    def _masks(self, depth: int) -> int:
        """Return the number of localizations in one tree."""
        return sum(self.refinements**level for level in range(depth))

    def _shape(self, budget: Budget, costs: Costs, image: bool = False) -> tuple[int | None, int]:
        """Return the number of trees (None = without limit) and their depth: the greatest, up to D, at which the budget
        pays for one whole tree. At depth 0 a tree is one image."""
        root = costs.encode if image else costs.sample
        node = self.localization(costs) + self.refinements * self.refinement(costs)
        initial = 1 if image else self.initial
        if not budget.counted:
            return initial, self.depth
        shape: tuple[int | None, int] | None = None
        masks = 0
        for depth in range(1, self.depth + 1):  # upwards: the number of masks grows exponentially
            masks += self.refinements ** (depth - 1)
            count = budget.count(root + masks * node, initial)
            if count == 0:
                break
            shape = count, depth
        if shape is not None:
            return shape
        if image or budget.minus(root).pays(self.located_refinement(costs)):
            return 1, 0
        return budget.count(root, initial) or 1, 0
