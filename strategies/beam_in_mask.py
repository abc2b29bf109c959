"""BeamInMask: a beam search over the denoising steps inside the mask.

Source: the future work that the LoTTS paper names. A refinement (its Algorithm 2) is carried out by beams: every few
steps all beams branch into children, the x0 predictions of the children are scored, and the best B children continue. All
settings are ours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lotts_search.arithmetic.smc import checkpoints
from lotts_search.core.localized import Localized
from lotts_search.core.stages import Stages
from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    Mask,
    ModelInfo,
    Plan,
    Search,
    Span,
    notice,
    repeat,
    score_of,
    scored,
    tunable,
)


@dataclass
class BeamInMask(Localized):
    """Refine by beams inside the mask of an image: all beams branch, their x0 predictions are scored, the best continue.

    The last tg steps are unmasked. A beam's first child keeps its noise, the others branch by new noise; at the
    beginning all are refinements by different seeds. With ``ratio=1`` it searches the whole image. What whole trees
    leave of the budget goes into more beams on the best image that has a mask.

    Attributes:
        initial: images from pure noise, each with a tree of its own; None = as many as the budget pays for.
        beams: B, candidates that continue after a selection.
        children: w, branches of each of them.
        interval: share of a refinement between selections, above 0 and below 1; a very small one is every step.
    """

    source = "Beam search in the mask, named as future work by LoTTS (Algorithm 2 is the refinement)"
    formula = "initial · (T + L + beams · children · (T - t0)); confined steps cost less"
    space = tunable(ratio=Span(0.2, 0.7), beams=(1, 2, 3), children=(2, 3, 4), interval=(0.2, 0.3, 0.4))

    initial: int | None = None
    beams: int = 2
    children: int = 2
    interval: float = 0.4

    def __post_init__(self) -> None:
        self.check_minimum(initial=1, beams=1, children=1)
        self.check_share("interval", "a refinement")

    def check(self, costs: Costs, info: ModelInfo) -> None:
        super().check(costs, info)
        if len(self._stops(costs)) == 1:
            left = costs.steps - self.begin(costs)
            notice(f"beam-in-mask: refinements of {left} steps have no selection at interval={self.interval:g}")

    async def run(self, search: Search) -> None:
        search.check_noise()
        costs = search.costs
        located: list[tuple[Candidate, Mask]] = []
        seeds = Counter[str]()  # refinements started so far, by the key of the image

        async def tree(seed: int) -> None:
            parent = await self.root(search, seed)
            if search.budget.left.pays(self.located_refinement(costs)):
                mask = await self.locate(search, parent)
                located.append((parent, mask))
                await beams(parent, mask)

        async def beams(parent: Candidate, mask: Mask) -> None:
            width = search.budget.left.count(self.refinement(costs), self.beams * self.children)
            seed = seeds[parent.key]
            seeds[parent.key] += width
            first, *later = self._stops(costs)
            trials = [self.refine(search, parent, mask, seed + i, first) for i in range(width)]
            for stop in later:
                alive = await scored(search, trials)
                alive.sort(key=lambda found: found.score, reverse=True)
                best = alive[: max(1, width // self.children)]
                if not best:
                    return
                trials = [search.child(best[i % len(best)].candidate, stop, i // len(best)) for i in range(width)]
            await scored(search, trials)

        await repeat(tree, self._trees(search.budget.left, costs, search.image is not None))
        while located and search.budget.left.pays(self.refinement(costs)):
            await beams(*max(located, key=lambda pair: score_of(pair[0])))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        localize, refine = self.localization(costs), self.refinement(costs)
        count = min(budget.paid(costs.sample), self._trees(budget, costs) or 1)
        left = budget.minus(count * costs.sample)
        masks = count if left.pays(localize + refine) else 0
        refined = left.minus(masks * localize).paid(refine) if masks else 0
        return Plan.of(
            ("sample", count, costs.sample),
            ("localize", masks, localize),
            *self._stages(costs).lines(self.confined(costs), refined),
        )

    def refinement(self, costs: Costs) -> Cost:
        """Return the cost of a refinement with the scores of its selections."""
        return self._stages(costs).cost(self.confined(costs))

    def _stages(self, costs: Costs) -> Stages:
        """Return the stages of a refinement; as many beams as there were go on at each."""
        stops = self._stops(costs)
        return Stages("refine", self.begin(costs), stops, [1.0] * len(stops))

    def _trees(self, budget: Budget, costs: Costs, image: bool = False) -> int | None:
        """Return for how many images the budget pays with a whole tree, at least one; None = without limit."""
        if image:
            return 1
        beams = self.beams * self.children * self.refinement(costs)
        count = budget.count(costs.sample + self.localization(costs) + beams, self.initial)
        return None if count is None else max(1, count)

    def _stops(self, costs: Costs) -> list[int]:
        """Return the steps of the selections, and T."""
        begin = self.begin(costs)
        return [*checkpoints(begin, costs.steps, self.interval, self.interval, 1), costs.steps]
