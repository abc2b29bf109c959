"""SVDD (Li et al. 2024): at every step several children, the one whose x0 prediction scores best goes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lotts_search.errors import BadInput
from lotts_search.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    Plan,
    Search,
    Strategy,
    allowance,
    check_noise,
    gather,
    repeat,
    scored,
)


@dataclass
class SVDD(Strategy):
    """Soft value-based decoding: at every step M children by their noise, one goes on by the score of its x0 prediction.

    A child's score pays for the next step of all its own children. A budget of N pictures without NFE stands for the
    steps of N samples; what whole chains leave of it goes into a chain with fewer children.

    Attributes:
        children: M, children at a step.
        alpha: temperature: a child is drawn with probability ∝ exp(score / alpha); 0 = the best one.
    """

    source = (
        "Li et al. 2024, Derivative-free guidance in continuous and discrete diffusion models with soft value-based "
        "decoding (SVDD-PM: M = 20, alpha = 0)"
    )
    formula = "chains · (1 + children · (T - 1))"

    children: int = 20
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.children < 1 or not self.alpha >= 0:
            raise BadInput(f"children must be 1 or more and alpha 0 or more, not {self.children} and {self.alpha}")

    async def run(self, search: Search) -> None:
        check_noise(search)
        if not search.budget.left.counted:
            await repeat(lambda seed: self.chain(search, seed, self.children), None)
            return
        widths = self._chains(search.budget.left, search.costs)
        await gather(*(self.chain(search, seed, width) for seed, width in enumerate(widths)))

    async def chain(self, search: Search, seed: int, width: int) -> Candidate | None:
        """One picture with ``width`` children at each step; None where all of them failed."""
        one = await search.sample(seed, stop=0)
        await search.score(one)
        while one.step < search.steps - 1:
            trials = [search.advance(one, one.step + 1, seed=i or None) for i in range(width)]
            children = await scored(search, trials)
            if not children:
                return None
            one = children[self._draw(search, [score for _, _, score in children])][1]
        return await search.advance(one)  # the last step has no noise

    def _draw(self, search: Search, scores: list[float]) -> int:
        if self.alpha == 0:
            return int(np.argmax(scores))
        weights = np.exp((np.asarray(scores) - max(scores)) / self.alpha)
        return int(search.rng.choice(len(scores), p=weights / weights.sum()))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        widths = self._chains(budget, costs)
        children = sum(widths) * (costs.steps - 1)
        scores = ("score", len(widths) + children, costs.score)
        return Plan.of(("sample", len(widths), Cost()), scores, ("advance", len(widths) + children, Cost()))

    def _chains(self, budget: Budget, costs: Costs) -> list[int]:
        """Children at a step, of each chain that the budget pays."""
        nfe, later = allowance(budget, costs), costs.steps - 1
        whole = Budget(nfe, budget.images).count(Cost(1 + self.children * later, 1)) or 0
        rest = nfe - whole * (1 + self.children * later)
        room = budget.images is None or whole < budget.images
        return [self.children] * whole + ([int((rest - 1) // later)] if room and later and rest >= costs.steps else [])
