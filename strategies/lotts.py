"""LoTTS (Algorithm 3): sample, locate the defective region, resample only that; the best image seen wins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lotts_search.core.localized import Localized
from lotts_search.core.strategy import Budget, Candidate, Cost, Costs, Mask, Plan, Search, repeat
from lotts_search.errors import BadInput


@dataclass
class LoTTS(Localized):
    """Localized test-time search: images from pure noise, each refined where its mask finds defects.

    What whole branches leave of the budget goes into more refinements of the best image that has a mask.

    Attributes:
        initial: images from pure noise; None = as many whole branches as the budget pays.
        refinements: k, refinements of each located image.
        depth: D; above 1 the refined images are located and refined again.
    """

    takes_image: ClassVar[bool] = True
    source = "LoTTS: Scale where it matters, training-free localized scaling for diffusion models, Algorithm 3"
    formula = "initial · (T + L + refinements · (T - t0)) at depth 1"

    initial: int | None = None
    refinements: int = 2
    depth: int = 1

    def __post_init__(self) -> None:
        for name in ("initial", "refinements", "depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} must be 1 or more, not {value}")

    async def run(self, search: Search) -> None:
        count, depth = self._shape(search.budget.left, search.costs, search.image is not None)
        located: list[tuple[Candidate, Mask]] = []

        async def locate(parent: Candidate) -> Mask:
            mask = await self.locate(search, parent)
            located.append((parent, mask))
            return mask

        async def deepen(parent: Candidate, depth: int) -> None:
            async def child(seed: int) -> None:
                await deepen(await self.refine(search, parent, mask, seed), depth - 1)

            if depth:
                mask = await locate(parent)
                await repeat(child, self.refinements)

        async def branch(seed: int) -> None:
            await deepen(await (search.sample(seed) if search.image is None else search.encode(search.image)), depth)

        await repeat(branch, count)
        one = self.refinement(search.costs)
        if not located and search.best and search.budget.left.pays(self.localization(search.costs) + one):
            await locate(search.best)
        if located:
            parent, mask = max(located, key=_score)
            more = search.budget.left.count(one)
            await repeat(lambda i: self.refine(search, parent, mask, self.refinements + i), more)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        count, depth = self._shape(budget, costs)
        if count is None:
            raise BadInput("the number of branches needs a budget in NFE or images")
        localize, refine = self.localization(costs), self.refinement(costs)
        masks = count * self._masks(depth)
        refined = masks * self.refinements
        left = budget.minus(count * costs.sample + masks * localize + refined * refine)
        if not masks and left.pays(localize + refine):
            masks, left = 1, left.minus(localize)
        if masks:
            refined += left.count(refine) or 0
        return Plan.of(("sample", count, costs.sample), ("localize", masks, localize), ("refine", refined, refine))

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return self.localization(costs) + self.refinement(costs) if image else costs.sample

    def _masks(self, depth: int) -> int:
        """Localizations in one branch."""
        return sum(self.refinements**level for level in range(depth))

    def _shape(self, budget: Budget, costs: Costs, image: bool = False) -> tuple[int | None, int]:
        """The number of branches and their depth: the deepest of which the budget pays one whole branch; at depth 0
        images alone. None = branches without end."""
        root, tree = costs.sample, self.localization(costs) + self.refinements * self.refinement(costs)
        if image:
            root = Cost()
        for depth in range(self.depth, 0, -1):
            count = budget.count(root + self._masks(depth) * tree)
            if count != 0:
                wanted = 1 if image else self.initial
                return (wanted if count is None else min(wanted or count, count)), depth
        if image or budget.minus(root).pays(self.localization(costs) + self.refinement(costs)):
            return 1, 0
        paid = budget.count(root) or 1
        return min(self.initial or paid, paid), 0


def _score(located: tuple[Candidate, Mask]) -> float:
    score = located[0].score
    return -math.inf if score is None else score
