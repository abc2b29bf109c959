"""SpectralEvolution: search the low frequencies of the start noise by the cross-entropy method.

Source: the paper "Spectral evolution search: efficient inference-time scaling for reward-aligned image generation" (SES, arXiv
2602.03208). Images depend far more on the low frequencies of the start noise than on the high ones. So the paper keeps the high
wavelet coefficients of one noise, draws the low ones from a normal distribution, and moves that distribution towards the
images with the highest scores (Rubinstein 1999). Ours: that the best of all generations are fitted, the smoothing, the defaults.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from lotts_search.core.strategy import (
    Budget,
    Costs,
    ModelInfo,
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
class SpectralEvolution(Strategy):
    """Draw the low frequencies of one start noise from a normal distribution and fit that to the best images, again and again.

    The first generation is standard normal, like the low frequencies of any noise. The high frequencies stay.

    Attributes:
        size: rows and columns of low frequencies, Haar coefficients of square blocks of the latent; at most its height and
            width.
        population: images per generation.
        elites: images, the best of all so far, that the distribution is fitted to, at most ``population``.
        rate: share of the fit in the next mean and standard deviations, above 0 to 1; the rest is the one before.
        generations: number of generations; None = as many as the budget pays for.
        eta: noise of the sampler, 0 = none, so that the start noise alone decides; None = the model's.
        start: seed of the noise.
    """

    source = (
        "Spectral evolution search: efficient inference-time scaling for reward-aligned image generation (SES, arXiv "
        "2602.03208)"
    )
    formula = "T · population · generations"
    space = tunable(size=(2, 4, 8), population=(3, 4, 6, 8), elites=(1, 2, 3), rate=Span(0.3, 1.0), eta=(None, 0.0))

    size: int = 4
    population: int = 4
    elites: int = 2
    rate: float = 0.5
    generations: int | None = None
    eta: float | None = None
    start: int = 0

    def __post_init__(self) -> None:
        self.check_minimum(size=1, population=1, generations=1, eta=0)
        self.check_range("elites", 1, self.population)
        if not 0 < self.rate <= 1:
            raise BadInput(f"rate must be above 0 and at most 1, not {self.rate}")

    def check(self, costs: Costs, info: ModelInfo) -> None:
        self.check_range("size", 1, min(info.latent[1:]))

    async def run(self, search: Search) -> None:
        base = search.fresh(self.start)
        shape = (search.latent[0], self.size, self.size)
        mean, deviation = np.zeros(shape), np.ones(shape)
        seen: list[tuple[float, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]] = []

        async def sample(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
            image = await search.sample(search.low(base, values), eta=self.eta)
            seen.append((score_of(image), values))

        for _ in itertools.count() if self.generations is None else range(self.generations):
            count = search.budget.left.count(search.costs.sample, self.population)
            if count == 0:
                return
            drawn = mean + deviation * search.rng.standard_normal((count, *shape))
            await gather_completed(*(sample(values) for values in drawn))
            if not seen:
                continue
            seen.sort(key=lambda image: image[0], reverse=True)
            best = np.stack([values for _, values in seen[: self.elites]])
            mean += self.rate * (best.mean(0) - mean)
            deviation += self.rate * (best.std(0) - deviation)

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        most = None if self.generations is None else self.population * self.generations
        return Plan.of(("sample", budget.paid(costs.sample, most), costs.sample))
