"""PartialRefinement: draw random regions of an image again, one after the other; no verifier chooses.

Source: Yoon, Ahn and Kang 2026, "Inference-time scaling in diffusion models through iterative partial refinement" (IPR, arXiv
2605.19317). An iteration of the paper: choose some regions of the sample, re-noise them, denoise them beside the others. It works
where what surrounds a region says what the region should be. There regions have noise levels of their own; here an iteration is
a refinement (LoTTS, Algorithm 2). The regions and the defaults are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    MaskSource,
    ModelInfo,
    Plan,
    RandomMask,
    Search,
    Strategy,
    gather_completed,
    tunable,
)

MASK = RandomMask(0.25, 4)


@dataclass
class PartialRefinement(Strategy):
    """Sample an image and resample random regions of it, each iteration in the image of the one before.

    A baseline for search inside masks: the last image is returned whatever its score, and it is the only one that is scored.

    Attributes:
        mask: how the region of an iteration is found; by default a random quarter of the image in squares of 4 tokens a side.
        start: step that the region is re-noised to; None = the model's t0.
        iterations: number of iterations; None = as many as the budget pays for.
    """

    takes_image = True
    source = (
        "Yoon, Ahn and Kang 2026, Inference-time scaling in diffusion models through iterative partial refinement (IPR)"
    )
    formula = "T + iterations · (L + T - t0)"
    space = tunable(iterations=(1, 2, 4, 8, None))

    mask: MaskSource = MASK
    start: int | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        self.check_minimum(iterations=0)

    def check(self, costs: Costs, info: ModelInfo) -> None:
        self.check_range("start", 0, costs.steps - 1)

    async def run(self, search: Search) -> None:
        count = self._count(search.budget.left, search.costs, search.image is not None)
        if search.image is None:
            image = await search.sample(0, score=False)
        else:
            image = await search.encode(search.image, score=False)
        for number in range(count):
            # An iteration that fails leaves the image as it was.
            image = (await gather_completed(self._iteration(search, image, number)) or [image])[0]
        await search.score(image)

    async def _iteration(self, search: Search, image: Candidate, number: int) -> Candidate:
        mask = await search.localize(image, self.mask)
        return await search.refine(image, mask, seed=number, start=self.start, score=False)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        count = self._count(budget, costs)
        return Plan.of(
            ("sample", 1, costs.steps * costs.step + costs.decode),
            ("localize", count, costs.localize(self.mask)),
            ("refine", count, self._refinement(costs)),
            ("score", 1, costs.scores(1)),
        )

    def _refinement(self, costs: Costs) -> Cost:
        """Return the cost of a refinement that is not scored."""
        start = costs.defaults.t0 if self.start is None else self.start
        return (costs.steps - start) * costs.step + costs.decode

    def _count(self, budget: Budget, costs: Costs, image: bool = False) -> int:
        """Return the number of iterations that the budget pays for."""
        left = budget.minus(costs.encode if image else costs.sample)
        return left.paid(costs.localize(self.mask) + self._refinement(costs), self.iterations)

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return costs.encode + costs.localize(self.mask) + self._refinement(costs) if image else costs.sample
