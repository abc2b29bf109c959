"""Zero-order search (Ma et al. 2025): a walk through start noises, from each to the best of its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Candidate, Costs, Plan, Search, Strategy, gather_completed, paid
from lotts_search.errors import BadInput
from lotts_search.work.requests import Noise


@dataclass
class ZeroOrder(Strategy):
    """Walks from a start noise to the neighbour with the best image, again and again; the best seen wins.

    A neighbour of the noise n is ``‖n‖(τu + √(1−τ²)w⊥)``: at cosine τ to it and of its norm.

    Source: Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising steps", section 3:
    zero-order search. There the sampler is deterministic (``eta=0``), so that an image changes little where its noise
    does; a sampler that adds noise adds its own to each neighbour.

    Attributes:
        neighbours: images of each step of the walk, N.
        tau: cosine of a neighbour to its noise, -1..1.
        iterations: steps of the walk; None = as many as the budget pays.
        eta: noise of the sampler, 0 = none, so that the start noise alone decides; None = the model's.
        climb: step only to a neighbour that beats where one stands; False steps to the best neighbour in any case.
        start: seed of the first noise.
    """

    source = "Ma et al. 2025, Inference-time scaling for diffusion models beyond scaling denoising steps (zero-order)"
    formula = "T · (1 + neighbours · iterations)"

    neighbours: int = 4
    tau: float = 0.95
    iterations: int | None = None
    eta: float | None = None
    climb: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise BadInput(f"neighbours must be 1 or more, not {self.neighbours}")
        if not -1 <= self.tau <= 1:
            raise BadInput(f"tau must be within -1..1, not {self.tau}")
        if self.iterations is not None and self.iterations < 0:
            raise BadInput(f"iterations must be 0 or more, not {self.iterations}")

    async def run(self, search: Search) -> None:
        async def image(noise: Noise) -> tuple[Candidate, Noise]:
            return await search.sample(noise, eta=self.eta), noise

        pivot: Noise = search.fresh(self.start)
        found = await gather_completed(image(pivot))
        score = found[0][0].score if found else None
        done = 0
        while self.iterations is None or done < self.iterations:
            count = search.budget.left.count(search.costs.sample)
            count = self.neighbours if count is None else min(count, self.neighbours)
            if not count:
                return
            seeds = range(done * self.neighbours, done * self.neighbours + count)
            found = await gather_completed(*(image(search.near(pivot, self.tau, seed)) for seed in seeds))
            done += 1
            if found:
                best, noise = max(found, key=lambda pair: pair[0].score or 0.0)
                if not self.climb or score is None or (best.score or 0.0) > score:
                    pivot, score = noise, best.score

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        most = None if self.iterations is None else 1 + self.neighbours * self.iterations
        return Plan.of(("sample", paid(budget, costs.sample, most), costs.sample))
