"""Particle: Feynman-Kac steering (Singhal et al. 2025), particles resampled by the scores of their x0 predictions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from lotts_search.arithmetic.smc import Potential, Scheme, Weights, checkpoints, twins
from lotts_search.core.localized import Localized
from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    Plan,
    Search,
    Trial,
    check_noise,
    paid,
    scored,
    staged,
)
from lotts_search.errors import BadInput

ROUND = 4
"""Particles of a round where nothing but time limits the search; the source's number."""


@dataclass
class Particle(Localized):
    """Particles denoised side by side; at checkpoints the promising ones multiply and others end.

    At a checkpoint the x0 prediction of every particle is scored, which pays for its next step: K particles cost what K
    images cost. A particle goes on with its own noise, its further children branch by new noise. Inside a mask the
    particles are refinements of one image. The arithmetic is in :mod:`lotts_search.arithmetic.smc`; tempering is that of DAS.

    Attributes:
        particles: K; None = as many as the budget pays.
        interval: steps between checkpoints.
        first, last: shares of the trajectory between which checkpoints lie, 0..1.
        potential: scores weigh by exp(strength · x), x being the greatest so far (max), their sum (add), the score
            itself (rt) or its growth (diff).
        strength: λ; more is greedier.
        resampling: how particles are drawn by weight.
        adaptive: resample only where the effective sample size is below half of the particles.
        temper: γ, lets λ grow to its value as (1 + γ)^(percent done) - 1 (DAS: 0.008); 0 = not.
        local: inside a mask on a first image; with a given image always. Settings of masks and refinements serve it.
    """

    source = "Singhal et al. 2025, A general framework for inference-time scaling and steering of diffusion models"
    formula = "particles · T; local: T + L + particles · (T - t0)"
    takes_image: ClassVar[bool] = True

    particles: int | None = None
    interval: int = 5
    first: float = 0.1
    last: float = 0.9
    potential: Potential = "max"
    strength: float = 10.0
    resampling: Scheme = "systematic"
    adaptive: bool = True
    temper: float = 0.0
    local: bool = False

    def __post_init__(self) -> None:
        if self.interval < 1 or (self.particles is not None and self.particles < 1):
            raise BadInput(f"particles and interval must be 1 or more, not {self.particles} and {self.interval}")
        if not (0 <= self.first <= self.last <= 1 and self.temper >= 0):
            raise BadInput("first and last must be within 0..1, in this order, and temper 0 or more")

    async def run(self, search: Search) -> None:
        check_noise(search)
        start, cost, make = 0, search.costs.sample, lambda seed, stop: search.sample(seed, stop=stop)
        if self.local or search.image is not None:
            parent = await self.root(search)
            cost, start = self.refinement(search.costs), self.begin(search.costs)
            if not search.budget.left.pays(self.localization(search.costs) + cost):
                return
            mask = await self.locate(search, parent)
            make = lambda seed, stop: self.refine(search, parent, mask, seed, stop)
        if (count := search.budget.left.count(cost)) is not None:
            await self.steer(search, make, start, min(count, self.particles or count))
            return
        size = self.particles or ROUND
        for seed in itertools.count(step=size):
            await self.steer(search, make, start, size, seed)

    async def steer(
        self, search: Search, make: Callable[[int, int], Trial[Candidate]], start: int, count: int, seed: int = 0
    ) -> tuple[list[Candidate], Weights]:
        """Steer ``count`` particles that ``make(seed, stop)`` begins at step ``start``. Returns the complete ones with
        their weights, by which they stand for the law of images tilted by exp(λ · score)."""
        at, *stops = [*checkpoints(start, search.steps, self.interval, self.first, self.last), search.steps]
        weights = Weights(count, self.potential, self.strength, self.temper)
        trials = [make(seed + i, at) for i in range(count)]
        while alive := await scored(search, trials):
            weights.keep([place for place, _, _ in alive])  # without those that failed
            scores = [score for _, _, score in alive]
            if at == search.steps:
                weights.finish(scores)
                return [particle for _, particle, _ in alive], weights
            weights.weigh(scores, at / search.steps)
            chosen = weights.resample(search.rng, self.resampling, 0.5 if self.adaptive else None)
            at, *stops = stops
            places = zip(chosen, twins(chosen), strict=True)
            trials = [search.advance(alive[place][1], at, seed=twin or None) for place, twin in places]
        return [], weights

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        kind, start, root = "sample", 0, []
        if self.local:
            kind, start, root = "refine", self.begin(costs), [("sample", 1, costs.sample)]
            budget, localize = budget.minus(costs.sample), self.localization(costs)
            if not budget.pays(localize + self.refinement(costs)):
                return Plan.of(*root)
            root, budget = [*root, ("localize", 1, localize)], budget.minus(localize)
        count = paid(budget, costs.segment(start, costs.steps), self.particles)
        stops = [*checkpoints(start, costs.steps, self.interval, self.first, self.last), costs.steps]
        return Plan.of(*root, *staged(costs, kind, count, start, stops))

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return self.localization(costs) + self.refinement(costs) if image else costs.sample
