"""Evolutionary search over start noises (EvoSearch, He et al. 2025): elites, tournaments and mutation."""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Candidate, Costs, Plan, Search, Strategy, gather_completed, paid
from lotts_search.errors import BadInput
from lotts_search.work.requests import Noise


@dataclass
class Evolutionary(Strategy):
    """Generations of start noises: the elites stay, the others are mutations of those that win tournaments.

    A mutation of the noise x is ``√(1−β²)x + βε``, again a standard normal noise. Elites keep their images, so a
    generation after the first costs ``population − elites`` images.

    Source: He et al. 2025, "Scaling image and video generation via test-time evolutionary search" (EvoSearch), the
    evolution of the initial noise. Mutation rate and the share of elites, 5 of 42, are those of its published code.

    Attributes:
        population: noises of a generation.
        elites: the best of a generation that live on, below ``population``.
        tournament: how many noises, drawn at random, each parent has to beat or be.
        beta: mutation rate, 0..1, the share of a child that is new.
        generations: number of generations after the first; None = as many as the budget pays.
        eta: noise of the sampler, 0 = none, so that the start noise alone decides; None = the model's.
    """

    source = "He et al. 2025, Scaling image and video generation via test-time evolutionary search (EvoSearch)"
    formula = "T · (population + generations · (population - elites))"

    population: int = 4
    elites: int = 1
    tournament: int = 2
    beta: float = 0.2
    generations: int | None = None
    eta: float | None = None

    def __post_init__(self) -> None:
        for name in ("population", "tournament"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be 1 or more, not {getattr(self, name)}")
        if not 0 <= self.elites < self.population:
            raise BadInput(f"elites must be within 0..{self.population - 1} (below the population), not {self.elites}")
        if not 0 <= self.beta <= 1:
            raise BadInput(f"beta must be within 0..1, not {self.beta}")
        if self.generations is not None and self.generations < 0:
            raise BadInput(f"generations must be 0 or more, not {self.generations}")

    async def run(self, search: Search) -> None:
        async def image(noise: Noise) -> tuple[float, Noise]:
            made: Candidate = await search.sample(noise, eta=self.eta)
            return made.score or 0.0, noise

        born = await gather_completed(
            *(image(search.fresh(seed)) for seed in range(self._size(search, self.population)))
        )
        alive, done = self._ranked(born), 0
        while alive and (self.generations is None or done < self.generations):
            size = self._size(search, self.population - self.elites)
            if not size:
                return
            noises = []
            for seed in range(size):
                drawn = search.rng.integers(len(alive), size=self.tournament)
                # Alive is ranked: the lowest number won.
                noises.append(search.mix(alive[int(drawn.min())][1], self.beta, done * self.population + seed))
            born = await gather_completed(*(image(noise) for noise in noises))
            alive, done = self._ranked(alive[: self.elites] + born), done + 1

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        most = None
        if self.generations is not None:
            most = self.population + self.generations * (self.population - self.elites)
        return Plan.of(("sample", paid(budget, costs.sample, most), costs.sample))

    @staticmethod
    def _ranked(generation: list[tuple[float, Noise]]) -> list[tuple[float, Noise]]:
        return sorted(generation, key=lambda one: one[0], reverse=True)

    @staticmethod
    def _size(search: Search, wanted: int) -> int:
        count = search.budget.left.count(search.costs.sample)
        return wanted if count is None else min(count, wanted)
