"""More steps: the paper's first category of test-time scaling, the whole budget in one longer trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy
from lotts_search.errors import BadInput


@dataclass
class MoreSteps(Strategy):
    """One image with as many denoising steps as the budget pays.

    A budget of N images without NFE stands for the steps of N images.

    Attributes:
        most: most steps, 1 or more; a schedule has no more than the model's training timesteps.
    """

    source = "Karras et al. 2022, Elucidating the design space of diffusion-based generative models"
    formula = "all of the budget, at most `most`"

    most: int = 1000

    def __post_init__(self) -> None:
        if self.most < 1:
            raise BadInput(f"most must be 1 or more, not {self.most}")

    async def run(self, search: Search) -> None:
        await search.sample(0, steps=self._steps(search.budget.left, search.costs))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.of(("sample", 1, costs.trajectory(self._steps(budget, costs))))

    def _steps(self, budget: Budget, costs: Costs) -> int:
        if not budget.counted:
            raise BadInput("more steps need a budget in NFE or images")
        steps = math.inf if budget.nfe is None else budget.nfe
        if budget.images is not None and budget.nfe is None:
            steps = budget.images * costs.steps
        return min(self.most, int(steps))
