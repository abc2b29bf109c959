"""Search over paths (Ma et al. 2025): re-noise the survivors, denoise them again along other paths, keep the best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Candidate, Cost, Costs, Mask, Plan, Search, Strategy, gather_completed
from lotts_search.errors import BadInput
from lotts_search.work.masks import WholeMask


@dataclass
class SearchOverPaths(Strategy):
    """Images from pure noise, then rounds in which the best are re-noised and denoised along several paths.

    The rounds start ever later on the schedule, so that paths part in ever smaller things. After the last round new
    images come in and compete with the survivors, until the budget ends.

    Source: Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising steps", section 3: search
    over paths. There survivors are half-denoised and judged by their x0 predictions; here they are finished images,
    which a verifier judges better: a path is a refinement with the whole image as its mask.

    Attributes:
        width: survivors, N; as many images come from pure noise.
        paths: paths of each survivor in a round, M.
        rounds: rounds of re-noising, their starts evenly spread over the steps from ``start`` on.
        start: step that the first round re-noises to; None = the model's t0.
    """

    source = "Ma et al. 2025, Inference-time scaling for diffusion models beyond scaling denoising steps (paths)"
    formula = "width · T + width · paths · Σ (T - start of the round), over and over"

    width: int = 2
    paths: int = 2
    rounds: int = 3
    start: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "paths", "rounds"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.start is not None and self.start < 0:
            raise BadInput(f"start must be 0 or more, not {self.start}")

    async def run(self, search: Search) -> None:
        alive: list[Candidate] = []
        whole: list[Mask] = []

        async def path(parent: Candidate, start: int, seed: int) -> Candidate:
            return await search.refine(parent, whole[0], start=start, integrate=0, seed=seed)

        seed = 0
        for start, count in self._rounds(search.budget.left, search.costs):
            if start is None:
                made = await gather_completed(*(search.sample(seed + i) for i in range(count)))
            elif alive:
                # The whole image is the same region on every candidate, and costs nothing.
                whole = whole or await gather_completed(search.localize(alive[0], WholeMask()))
                if not whole:
                    return
                made = await gather_completed(*(path(alive[i % len(alive)], start, seed + i) for i in range(count)))
            else:
                made = []
            seed += count
            alive = sorted(alive + made, key=lambda one: one.score or 0.0, reverse=True)[: self.width]

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        if not budget.counted:
            raise BadInput("the number of rounds needs a budget in NFE or images")
        trials = {"sample": 0, "localize": 0, "refine": 0}
        spent = Cost()
        for start, count in self._rounds(budget, costs):
            trials["sample" if start is None else "refine"] += count
            trials["localize"] = int(trials["refine"] > 0)
            spent = spent + count * self._cost(costs, start)
        return Plan({kind: count for kind, count in trials.items() if count}, spent.nfe)

    def _rounds(self, budget: Budget, costs: Costs) -> Iterator[tuple[int | None, int]]:
        """Of each round the step that it starts from, None = pure noise, and its images; until nothing is paid."""
        first = min(costs.defaults.t0 if self.start is None else self.start, costs.steps - 1)
        later = [first + i * (costs.steps - first) // self.rounds for i in range(self.rounds)]
        anything = True
        while anything:
            anything = False
            for start in (None, *later):
                cost, wanted = self._cost(costs, start), self.width * (1 if start is None else self.paths)
                count = budget.count(cost)
                count = wanted if count is None else min(count, wanted)
                if count:
                    budget, anything = budget.minus(count * cost), True
                    yield start, count

    @staticmethod
    def _cost(costs: Costs, start: int | None) -> Cost:
        return costs.sample if start is None else costs.refine(start)
