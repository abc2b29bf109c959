"""More steps: the whole budget in one longer trajectory, the first category of test-time scaling in the LoTTS paper.

Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models".
"""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy
from lotts_search.errors import BadInput


@dataclass
class MoreSteps(Strategy):
    """Sample one image with as many denoising steps as the budget pays for.

    Under a budget of N images without NFE, it takes the steps of N images.

    Attributes:
        most: most steps, 1 or more; a schedule cannot have more than the model's training timesteps.
    """

    source = "Karras et al. 2022, Elucidating the design space of diffusion-based generative models"
    formula = "all of the budget, at most `most`"

    most: int = 1000

    def __post_init__(self) -> None:
        self.check_minimum(most=1)

    async def run(self, search: Search) -> None:
        await search.sample(0, steps=self._steps(search.budget.left, search.costs))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.of(("sample", 1, costs.trajectory(self._steps(budget, costs))))

    def _steps(self, budget: Budget, costs: Costs) -> int:
        if not budget.counted:
            raise BadInput("more steps need a budget in NFE, images or FLOPs")
        return budget.allowed(costs.sample).minus(costs.image).paid(costs.step, self.most)
