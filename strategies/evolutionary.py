"""Evolutionary search over start noises: elites, tournaments and mutation.

Source: He et al. 2025, "Scaling image and video generation via test-time evolutionary search" (EvoSearch), the evolution
of the initial noise. The mutation rate and the share of elites, 5 of 42, are those of its published code.
"""

from __future__ import annotations

import itertools
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
from lotts_search.errors import BadInput


@dataclass
class Evolutionary(Strategy):
    """Evolve start noises over generations: the elites stay, the others are mutations of tournament winners.

    A mutation of the noise x is ``√(1−β²)x + βε``, again a standard normal noise. Elites keep their images, so a
    generation after the first costs ``population − elites`` images.

    Attributes:
        population: noises per generation.
        elites: how many of the best stay for the next generation, below ``population``.
        tournament: noises drawn at random for each tournament; the best of them is the parent.
        beta: mutation rate, 0..1, the share of a child that is new.
        generations: number of generations after the first; None = as many as the budget pays for.
        eta: noise of the sampler, 0 = none, so that the start noise alone decides; None = the model's.
    """

    source = "He et al. 2025, Scaling image and video generation via test-time evolutionary search (EvoSearch)"
    formula = "T · (population + generations · (population - elites))"
    space = tunable(
        population=(3, 4, 6, 8),
        elites=(1, 2),
        tournament=(1, 2, 3),
        beta=Span(0.1, 0.8),
        eta=(None, 0.0),
    )

    population: int = 4
    elites: int = 1
    tournament: int = 2
    beta: float = 0.2
    generations: int | None = None
    eta: float | None = None

    def __post_init__(self) -> None:
        self.check_minimum(population=1, tournament=1, generations=0, eta=0)
        if not 0 <= self.elites < self.population:
            raise BadInput(f"elites must be within 0..{self.population - 1} (below the population), not {self.elites}")
        self.check_range("beta", 0, 1)

    async def run(self, search: Search) -> None:
        async def sample(noise: Noise) -> tuple[float, Noise]:
            return score_of(await search.sample(noise, eta=self.eta)), noise

        size = search.budget.left.count(search.costs.sample, self.population)
        born = await gather_completed(*(sample(search.fresh(seed)) for seed in range(size)))
        alive = _ranked(born)
        for generation in itertools.count() if self.generations is None else range(self.generations):
            size = search.budget.left.count(search.costs.sample, self.population - self.elites)
            if not alive or size == 0:
                return
            mutations = []
            for i in range(size):
                drawn = search.rng.integers(len(alive), size=self.tournament)
                _, parent = alive[int(drawn.min())]  # the survivors are ranked: the lowest number is the best
                mutations.append(search.mix(parent, self.beta, seed=generation * self.population + i))
            born = await gather_completed(*(sample(noise) for noise in mutations))
            alive = _ranked(alive[: self.elites] + born)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        most = None
        if self.generations is not None:
            most = self.population + self.generations * (self.population - self.elites)
        return Plan.of(("sample", budget.paid(costs.sample, most), costs.sample))


def _ranked(generation: list[tuple[float, Noise]]) -> list[tuple[float, Noise]]:
    return sorted(generation, key=lambda image: image[0], reverse=True)
