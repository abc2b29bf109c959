"""Random search: Best-of-N in growing rounds, which may stop when they no longer help.

Source: Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising steps", section 3. It scales
its one axis, the number of start noises, by powers of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy, gather_completed
from lotts_search.errors import BadInput


@dataclass
class RandomSearch(Strategy):
    """Sample independent images in rounds of growing size; the best image of all rounds wins.

    The images are those of Best-of-N; the rounds serve ``patience``.

    Attributes:
        first: images of the first round.
        growth: size of a round relative to the round before, 1 or more.
        rounds: number of rounds; None = as many as the budget pays for.
        patience: stop after this many rounds in a row without a better image; None = never.
    """

    source = (
        "Ma et al. 2025, Inference-time scaling for diffusion models beyond scaling denoising steps (random search)"
    )
    formula = "T · (first + first · growth + … ), one term per round"

    first: int = 2
    growth: float = 2.0
    rounds: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        self.check_minimum(first=1, growth=1, rounds=1, patience=1)

    async def run(self, search: Search) -> None:
        made = 0
        in_vain = 0
        for size in self._sizes(search.budget.left, search.costs):
            before = search.best
            await gather_completed(*(search.sample(seed) for seed in range(made, made + size)))
            made += size
            in_vain = in_vain + 1 if search.best is before else 0
            if self.patience is not None and in_vain >= self.patience:
                return

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        if budget.count(costs.sample) is None and self.rounds is None:
            raise BadInput("the number of rounds needs a budget in NFE, images or FLOPs")
        return Plan.of(("sample", sum(self._sizes(budget, costs)), costs.sample))

    def _sizes(self, budget: Budget, costs: Costs) -> Iterator[int]:
        """Yield the number of images of each round; the budget may cut the last round short."""
        number = 0
        wanted = float(self.first)
        while self.rounds is None or number < self.rounds:
            size = budget.count(costs.sample, round(wanted))
            if size == 0:
                return
            yield size
            budget = budget.minus(size * costs.sample)
            wanted = min(wanted * self.growth, 2.0**53)
            number += 1
