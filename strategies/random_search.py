"""Random search in rounds (Ma et al. 2025): Best-of-N in growing batches, which may stop when they bring no more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy, gather_completed
from lotts_search.errors import BadInput


@dataclass
class RandomSearch(Strategy):
    """Independent images, in rounds of growing size; the best one of all rounds wins.

    Source: Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising steps", section 3:
    random search, which scales its one axis, the number of noises, by powers of two. Its images are those of
    Best-of-N; the rounds are there for ``patience``.

    Attributes:
        first: images of the first round.
        growth: how many times the images of the round before a round has, 1 or more.
        rounds: number of rounds; None = as many as the budget pays.
        patience: stop after so many rounds in a row without a better image; None = never.
    """

    source = (
        "Ma et al. 2025, Inference-time scaling for diffusion models beyond scaling denoising steps (random search)"
    )
    formula = "T · (first + first · growth + … ), one term a round"

    first: int = 2
    growth: float = 2.0
    rounds: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("first", "growth", "rounds", "patience"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 1):
                raise BadInput(f"{name} must be 1 or more, not {value}")

    async def run(self, search: Search) -> None:
        made, vain = 0, 0
        for size in self._sizes(search.budget.left, search.costs):
            before = search.best
            await gather_completed(*(search.sample(seed) for seed in range(made, made + size)))
            made, vain = made + size, 0 if search.best is not before else vain + 1
            if self.patience is not None and vain >= self.patience:
                return

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        if budget.count(costs.sample) is None and self.rounds is None:
            raise BadInput("the number of rounds needs a budget in NFE or images")
        return Plan.of(("sample", sum(self._sizes(budget, costs)), costs.sample))

    def _sizes(self, budget: Budget, costs: Costs) -> Iterator[int]:
        """Images of each round; the budget may cut the last one short."""
        number, size = 0, float(self.first)
        left = budget.count(costs.sample)
        while (left is None or left > 0) and (self.rounds is None or number < self.rounds):
            now = round(size) if left is None else min(round(size), left)
            yield now
            number, size = number + 1, size * self.growth
            left = None if left is None else left - now
