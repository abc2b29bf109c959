"""Zero-order search: walk through start noises, at each step to the best neighbour.

Source: Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising steps", section 3. The steps
of the paper: take a start noise as the pivot, draw N neighbours of it, sample an image from each, let the best neighbour
be the next pivot. Its sampler is deterministic (``eta=0``), so that a small change of the noise is a small change of the
image; a sampler with noise adds different noise to each neighbour.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from lotts_search.core.strategy import (
    Budget,
    Costs,
    Noise,
    Plan,
    Search,
    Span,
    Strategy,
    gather_completed,
    score_of,
    tunable,
)


@dataclass
class ZeroOrder(Strategy):
    """Walk from a start noise to the neighbour with the best image, again and again; the best image of all wins.

    A neighbour of the noise n is ``‖n‖(τu + √(1−τ²)w⊥)``: it has the same norm, and the cosine between the two is τ.

    Attributes:
        neighbours: N, images per step of the walk.
        tau: cosine between a noise and its neighbours, -1..1.
        iterations: steps of the walk; None = as many as the budget pays for.
        eta: noise of the sampler, 0 = none, so that the start noise alone decides; None = the model's.
        climb: move only to a neighbour that beats the pivot; False moves to the best neighbour in any case.
        start: seed of the first noise.
    """

    source = "Ma et al. 2025, Inference-time scaling for diffusion models beyond scaling denoising steps (zero-order)"
    formula = "T · (1 + neighbours · iterations)"
    space = tunable(neighbours=(1, 2, 4, 8), tau=Span(0.5, 0.99), climb=(False, True), eta=(None, 0.0))

    neighbours: int = 4
    tau: float = 0.95
    iterations: int | None = None
    eta: float | None = None
    climb: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        self.check_minimum(neighbours=1, iterations=0, eta=0)
        self.check_range("tau", -1, 1)

    async def run(self, search: Search) -> None:
        async def sample(noise: Noise) -> tuple[float, Noise]:
            return score_of(await search.sample(noise, eta=self.eta)), noise

        pivot: Noise = search.fresh(self.start)
        first = await gather_completed(sample(pivot))
        pivot_score = first[0][0] if first else -math.inf
        for iteration in itertools.count() if self.iterations is None else range(self.iterations):
            count = search.budget.left.count(search.costs.sample, self.neighbours)
            if count == 0:
                return
            seeds = range(iteration * self.neighbours, iteration * self.neighbours + count)
            neighbours = [search.near(pivot, self.tau, seed) for seed in seeds]
            images = await gather_completed(*(sample(noise) for noise in neighbours))
            if not images:
                continue
            score, noise = max(images, key=lambda image: image[0])
            if score > pivot_score or not self.climb:
                pivot = noise
                pivot_score = score

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        most = None if self.iterations is None else 1 + self.neighbours * self.iterations
        return Plan.of(("sample", budget.paid(costs.sample, most), costs.sample))
