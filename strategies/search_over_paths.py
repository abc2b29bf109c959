"""Search over paths: re-noise the survivors, denoise them again along several paths, keep the best.

Source: Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising steps", section 3. There the
survivors are half-denoised and scored by their x0 predictions. Here they are complete images, which a verifier scores
more reliably: a path is a refinement whose mask is the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    Mask,
    ModelInfo,
    Plan,
    Search,
    Strategy,
    WholeMask,
    gather_completed,
    score_of,
    tunable,
)
from lotts_search.errors import BadInput


@dataclass
class SearchOverPaths(Strategy):
    """Sample images, then re-noise the best in rounds and denoise each along several paths.

    Each round starts later on the schedule than the one before, so that paths differ in ever smaller details. After the
    last round new samples compete with the survivors, and the rounds begin again, until the budget is spent.

    Attributes:
        width: N, the number of survivors, and of samples.
        paths: M, paths per survivor and round.
        rounds: rounds of re-noising, whose starts are spread evenly over the steps from ``start`` on.
        start: step that the first round re-noises to; None = the model's t0.
    """

    source = "Ma et al. 2025, Inference-time scaling for diffusion models beyond scaling denoising steps (paths)"
    formula = "width · T + width · paths · Σ (T - start of the round), over and over"
    space = tunable(width=(1, 2, 3), paths=(1, 2, 4), rounds=(1, 2, 3))

    width: int = 2
    paths: int = 2
    rounds: int = 3
    start: int | None = None

    def __post_init__(self) -> None:
        self.check_minimum(width=1, paths=1, rounds=1, start=0)

    def check(self, costs: Costs, info: ModelInfo) -> None:
        self.check_range("start", 0, costs.steps - 1)

    async def run(self, search: Search) -> None:
        alive: list[Candidate] = []
        whole: list[Mask] = []
        seed = 0
        for start, count in self._rounds(search.budget.left, search.costs):
            seeds = range(seed, seed + count)
            seed += count
            if start is None:
                made = await gather_completed(*(search.sample(i) for i in seeds))
            elif alive:
                # The whole image is the same region of every candidate and costs nothing: locate it once.
                whole = whole or await gather_completed(search.localize(alive[0], WholeMask()))
                if not whole:
                    return
                parents = [alive[i % len(alive)] for i in range(count)]
                trials = [
                    search.refine(parent, whole[0], start=start, integrate=0, seed=i)
                    for parent, i in zip(parents, seeds, strict=True)
                ]
                made = await gather_completed(*trials)
            else:
                made = []
            alive = sorted(alive + made, key=score_of, reverse=True)[: self.width]

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        if not budget.counted:
            raise BadInput("the number of rounds needs a budget in NFE, images or FLOPs")
        samples, refined = 0, list[tuple[str, int, Cost]]()
        for start, count in self._rounds(budget, costs):
            if start is None:
                samples += count
            else:
                refined.append(("refine", count, costs.refine(start)))
        return Plan.of(("sample", samples, costs.sample), ("localize", min(1, len(refined)), Cost()), *refined)

    def _rounds(self, budget: Budget, costs: Costs) -> Iterator[tuple[int | None, int]]:
        """Yield (start step, number of images) of each round until the budget is spent; the start None is pure noise."""
        first = costs.defaults.t0 if self.start is None else self.start
        starts = [first + i * (costs.steps - first) // self.rounds for i in range(self.rounds)]
        spent = False
        while not spent:
            spent = True
            for start in (None, *starts):
                cost = costs.sample if start is None else costs.refine(start)
                count = budget.count(cost, self.width if start is None else self.width * self.paths)
                if count > 0:
                    spent = False
                    budget = budget.minus(count * cost)
                    yield start, count
