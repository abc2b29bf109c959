"""BeamInMask: a beam search over the denoising steps inside the mask, the future work that the LoTTS paper names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lotts_search.core.localized import Localized
from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    Mask,
    Plan,
    Search,
    check_noise,
    paid,
    repeat,
    scored,
    staged,
)
from lotts_search.errors import BadInput


@dataclass
class BeamInMask(Localized):
    """Beams of refinements: all branch, their x0 predictions are scored, the best go on, inside the mask of an image.

    The last tg steps are unmasked. A beam's first child goes on with its noise, the others branch by new noise; the
    first children of all beams are refinements of their own. With ``ratio=1`` it searches the whole image. What whole
    trees leave of the budget goes into more beams on the best image that has a mask.

    Attributes:
        initial: images from pure noise, each with a tree of its own; None = as many as the budget pays.
        beams: B, candidates that go on at a selection.
        children: w, branches of each of them.
        interval: steps between selections.
    """

    source = "Beam search in the mask, named as future work by LoTTS (Algorithm 2 is the refinement)"
    formula = "initial · (T + L + beams · children · (T - t0))"
    takes_image: ClassVar[bool] = True

    initial: int | None = None
    beams: int = 2
    children: int = 2
    interval: int = 3

    def __post_init__(self) -> None:
        for name in ("initial", "beams", "children", "interval"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} must be 1 or more, not {value}")

    async def run(self, search: Search) -> None:
        check_noise(search)
        costs, located, seeds = search.costs, list[tuple[Candidate, Mask]](), dict[str, int]()
        localize, one = self.localization(costs), self.refinement(costs)

        async def beams(parent: Candidate, mask: Mask) -> None:
            left, width = search.budget.left.count(one), self.beams * self.children
            width = width if left is None else min(width, left)
            seed = seeds.get(parent.key, 0)
            seeds[parent.key] = seed + width
            stop, *stops = self._stops(costs)
            trials = [self.refine(search, parent, mask, seed + i, stop) for i in range(width)]
            while (alive := await scored(search, trials)) and stops:
                best = sorted(alive, key=lambda found: -found[2])[: max(1, width // self.children)]
                stop, *stops = stops
                pairs = [(best[i % len(best)][1], i // len(best)) for i in range(width)]
                trials = [search.advance(beam, stop, seed=twin or None) for beam, twin in pairs]

        async def tree(seed: int) -> None:
            parent = await self.root(search, seed)
            if search.budget.left.pays(localize + one):
                located.append((parent, await self.locate(search, parent)))
                await beams(*located[-1])

        trees = self._trees(search.budget.left, costs, search.image is not None)
        await repeat(tree, trees)
        while located and search.budget.left.pays(one):
            await beams(*max(located, key=lambda found: found[0].score or 0.0))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        localize, one = self.localization(costs), self.refinement(costs)
        count = min(paid(budget, costs.sample), self._trees(budget, costs) or 1)
        left = budget.minus(count * costs.sample)
        masks = count if left.pays(localize + one) else 0
        refined = paid(left.minus(masks * localize), one) if masks else 0
        lines = [("sample", count, costs.sample), ("localize", masks, localize)]
        return Plan.of(*lines, *staged(costs, "refine", refined, self.begin(costs), self._stops(costs)))

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return self.localization(costs) + self.refinement(costs) if image else costs.sample

    def _trees(self, budget: Budget, costs: Costs, image: bool = False) -> int | None:
        """Images that get a tree: as many as the budget pays whole trees for, at least one; None = without end."""
        if image:
            return 1
        beams = self.beams * self.children * self.refinement(costs)
        count = budget.count(costs.sample + self.localization(costs) + beams)
        return self.initial if count is None else max(1, min(count, self.initial or count))

    def _stops(self, costs: Costs) -> list[int]:
        """Steps of the selections, and T. Before T - 1 there is no noise to branch by."""
        return [*range(self.begin(costs) + self.interval, costs.steps - 1, self.interval), costs.steps]
