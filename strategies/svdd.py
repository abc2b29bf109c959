"""SVDD (Li et al. 2024): at every step several children, the one whose x0 prediction scores best goes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    Plan,
    Search,
    Strategy,
    allowance,
    check_noise,
    gather_completed,
    repeat,
    scored,
)
from lotts_search.errors import BadInput


@dataclass
class SVDD(Strategy):
    """Soft value-based decoding: at every step M children by their noise, one goes on by the score of its x0 prediction.

    A child's score pays for the next step of all its own children. A budget of N images without NFE stands for the
    steps of N samples; what whole chains leave of it goes into one with fewer children, the odd ones late.

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
            await repeat(lambda seed: self.chain(search, seed, self._whole(search.costs)), None)
            return
        chains = self._chains(search.budget.left, search.costs)
        await gather_completed(*(self.chain(search, seed, nfe) for seed, nfe in enumerate(chains)))

    async def chain(self, search: Search, seed: int, nfe: int) -> Candidate | None:
        """One image for so many NFE; None where all children of a step failed."""
        later = search.steps - 1
        one = await search.sample(seed, stop=0)
        await search.score(one)
        while one.step < later:
            width = (nfe - 1 + one.step) // later  # over all steps they add up to nfe - 1
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
        chains = self._chains(budget, costs)
        scores = ("score", sum(chains), costs.score)
        return Plan.of(("sample", len(chains), Cost()), scores, ("advance", sum(chains), Cost()))

    def _whole(self, costs: Costs) -> int:
        """NFE of a chain with all its children."""
        return 1 + self.children * (costs.steps - 1)

    def _chains(self, budget: Budget, costs: Costs) -> list[int]:
        """NFE of each chain that the budget pays."""
        nfe, whole = allowance(budget, costs), self._whole(costs)
        count = Budget(nfe, budget.images).count(Cost(whole, 1)) or 0
        room, rest = budget.images is None or count < budget.images, int(nfe - count * whole)
        return [whole] * count + ([rest] if room and rest >= costs.steps else [])
