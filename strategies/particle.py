"""Particle: Feynman-Kac steering, in which particles are resampled by the scores of their x0 predictions.

Source: Singhal et al. 2025, "A general framework for inference-time scaling and steering of diffusion models". A step of
the paper: denoise all particles to the next checkpoint, score their x0 predictions, weigh each particle by its potential,
resample the particles by weight. Its images have 4 particles, λ = 10, and checkpoints at 20, 40, 60 and 80 of 100 steps. The
arithmetic is in :mod:`lotts_search.arithmetic.smc`; tempering is that of DAS. λ per spread is ours: the source steers by
ImageReward, whose scores are standardised, and those of other verifiers have other sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lotts_search.arithmetic.smc import Potential, Scheme, Weights, checkpoints, twins
from lotts_search.core.localized import Localized
from lotts_search.core.stages import Stages
from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    ModelInfo,
    Plan,
    Search,
    Span,
    Trial,
    notice,
    scored,
    tunable,
)
from lotts_search.errors import BadInput

ROUND = 4
"""Particles per round where nothing but time limits the search; the source's number."""


@dataclass
class Particle(Localized):
    """Denoise particles side by side; at checkpoints the promising ones multiply and the others end.

    At a checkpoint the x0 prediction of every particle is scored, which pays for its next step: K particles cost what K
    images cost. A particle's first child keeps its noise, the others branch by new noise. Inside a mask the particles
    are refinements of one image.

    Attributes:
        particles: K; None = as many as the budget pays for.
        interval: share of the trajectory between checkpoints, above 0 and below 1; a very small one is every step.
        first, last: shares of the trajectory between which checkpoints lie, 0..1.
        potential: scores weigh by exp(strength · x), x being the greatest so far (max), their sum (add), the score
            itself (rt) or its growth (diff).
        strength: λ; more is greedier. 0 selects nothing.
        unit: of λ: per standard deviation of the particles' scores at the first checkpoint (spread), or per score (score).
        resampling: how particles are drawn by weight; fleming-viot replaces single particles and keeps more of the different
            lineages alive (Shekhar et al. 2026).
        adaptive: resample only where the effective sample size is below half of the particles; without effect where ``ess``
            is set.
        ess: share of the particles, 0..1, below which the effective sample size does not fall: λ is lowered at a checkpoint where
            it would, and every checkpoint resamples (adaptive temperature, Su et al. 2025; the rule is ours). 0 = never.
        funnel: share of the particles that the last stage has, above 0 to 1. Their number falls geometrically from checkpoint to
            checkpoint, so that more of them start for the same NFE (Su et al. 2025; the rate is ours).
        temper: γ, lets λ grow to its value as (1 + γ)^(percent done) - 1 (DAS: 0.008); 0 = no tempering.
        local: steer refinements of a first image inside its mask, as always with a given image. The settings of masks
            and refinements apply to it.
    """

    confines = False
    source = "Singhal et al. 2025, A general framework for inference-time scaling and steering of diffusion models"
    formula = "particles · T; local: T + L + particles · (T - t0)"
    space = tunable(
        interval=(0.1, 0.2, 0.3),
        strength=Span(1.0, 30.0, log=True),
        potential=("max", "diff", "add", "rt"),
        resampling=("systematic", "fleming-viot"),
        adaptive=(True, False),
        funnel=(1.0, 0.5, 0.25),
        ess=(0.0, 0.25, 0.5, 0.75),
    )

    particles: int | None = None
    interval: float = 0.2
    first: float = 0.2
    last: float = 0.8
    potential: Potential = "max"
    strength: float = 10.0
    unit: Literal["spread", "score"] = "spread"
    resampling: Scheme = "systematic"
    adaptive: bool = True
    ess: float = 0.0
    funnel: float = 1.0
    temper: float = 0.0
    local: bool = False

    def __post_init__(self) -> None:
        self.check_minimum(particles=1, strength=0)
        self.check_range("temper", 0, 1)
        self.check_range("ess", 0, 1)
        self.check_share("interval")
        if self.funnel != 1:
            self.check_share("funnel", "the particles")
        if not 0 <= self.first <= self.last <= 1:
            raise BadInput(f"first and last must be within 0..1, in this order, not {self.first} and {self.last}")

    def check(self, costs: Costs, info: ModelInfo) -> None:
        super().check(costs, info)
        stages = self._stages(costs, "refine" if self.local else "sample")
        if len(stages.stops) == 1:
            notice(
                f"particle: there is no checkpoint between steps {stages.start} and {costs.steps}: nothing is steered"
            )

    async def run(self, search: Search) -> None:
        search.check_noise()
        if self.local or search.image is not None:
            await self._steer_refinements(search)
        else:
            await self._steer_samples(search)

    async def _steer_samples(self, search: Search) -> None:
        def sample(seed: int, stop: int) -> Trial[Candidate]:
            return search.sample(seed, stop=stop)

        await self._rounds(search, sample, "sample")

    async def _steer_refinements(self, search: Search) -> None:
        located = await self.located_root(search)
        if located is None:
            return
        parent, mask = located

        def refine(seed: int, stop: int) -> Trial[Candidate]:
            return self.refine(search, parent, mask, seed, stop)

        await self._rounds(search, refine, "refine")

    async def _rounds(
        self, search: Search, make: Callable[[int, int], Trial[Candidate]], kind: Literal["sample", "refine"]
    ) -> None:
        """Steer all particles that the budget pays for at once; where only time limits the search, one round after the
        other."""
        stages = self._stages(search.costs, kind)
        if search.budget.left.counted:
            await self.steer(search, make, stages, stages.paid(search.budget.left, search.costs, self.particles))
            return
        size = self.particles or ROUND
        for seed in itertools.count(step=size):
            await self.steer(search, make, stages, size, seed)

    async def steer(
        self, search: Search, make: Callable[[int, int], Trial[Candidate]], stages: Stages, count: int, seed: int = 0
    ) -> tuple[list[Candidate], Weights]:
        """Steer ``count`` particles, which ``make(seed, stop)`` starts.

        Returns:
            The complete particles and their weights: together they represent the distribution of images tilted by
            exp(λ · score).
        """
        stops, counts = stages.stops, stages.counts(count)
        weights = Weights(count, self.potential, self.strength, self.temper, relative=self.unit == "spread")
        trials = [make(seed + i, stops[0]) for i in range(count)]
        for (at, stop), fewer in zip(pairwise(stops), counts[1:], strict=True):
            alive = await scored(search, trials)
            if not alive:
                return [], weights
            weights.keep([particle.place for particle in alive])  # without those that failed
            weights.weigh([particle.score for particle in alive], at / search.steps, self.ess)
            below = 0.5 if self.adaptive and not self.ess else None
            chosen = weights.resample(search.rng, self.resampling, below, fewer if self.funnel < 1 else None)
            trials = [
                search.child(alive[place].candidate, stop, number)
                for place, number in zip(chosen, twins(chosen), strict=True)
            ]
        alive = await scored(search, trials)
        if alive:
            weights.keep([particle.place for particle in alive])
            weights.finish([particle.score for particle in alive])
        return [particle.candidate for particle in alive], weights

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        if not self.local:
            return Plan.of(*self._lines(budget, costs, self._stages(costs, "sample")))
        root = ("sample", 1, costs.sample)
        localization = self.localization(costs)
        budget = budget.minus(costs.sample)
        if not budget.pays(self.located_refinement(costs)):
            return Plan.of(root)
        refinements = self._lines(budget.minus(localization), costs, self._stages(costs, "refine"))
        return Plan.of(root, ("localize", 1, localization), *refinements)

    def _lines(self, budget: Budget, costs: Costs, stages: Stages) -> Iterator[tuple[str, int, Cost]]:
        """Return the plan of the particles."""
        return stages.lines(costs, stages.paid(budget, costs, self.particles))

    def refinement(self, costs: Costs) -> Cost:
        """Return the cost of a refinement with the scores at its checkpoints."""
        return self._stages(costs, "refine").cost(costs)

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return super().least(costs, image) if image or self.local else self._stages(costs, "sample").cost(costs)

    def _stages(self, costs: Costs, kind: Literal["sample", "refine"]) -> Stages:
        """Return the stages of particles from pure noise or in a mask; the last one makes images."""
        start = 0 if kind == "sample" else self.begin(costs)
        stops = [*checkpoints(start, costs.steps, self.interval, self.first, self.last), costs.steps]
        last = max(1, len(stops) - 1)
        return Stages(kind, start, stops, [self.funnel ** (stage / last) for stage in range(len(stops))])
