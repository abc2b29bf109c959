"""SVDD, soft value-based decoding: at every step draw several children and continue with the best by its x0 prediction.

Source: Li et al. 2024, "Derivative-free guidance in continuous and discrete diffusion models with soft value-based
decoding", algorithm SVDD-PM. A step of the paper: draw M children of the current state, estimate the value of each by the
reward of its x0 prediction, draw one child with probability ∝ exp(value / alpha). There M = 20 and alpha = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Cost,
    Costs,
    Plan,
    Scored,
    Search,
    Strategy,
    gather_completed,
    repeat,
    scored,
)


@dataclass
class SVDD(Strategy):
    """At every step draw M children by new noise; one of them continues, chosen by the score of its x0 prediction.

    A child's score pays for the next step of all of its children. Under a budget of N images without NFE, the chains
    take the steps of N samples. What whole chains leave over funds one more chain with fewer children per step.

    Attributes:
        children: M, children per step.
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
        self.check_minimum(children=1, alpha=0)

    async def run(self, search: Search) -> None:
        search.check_noise()
        if not search.budget.left.counted:
            await repeat(lambda seed: self.chain(search, seed, self._whole(search.costs)), None)
            return
        chains = self._chains(search.budget.left, search.costs)
        await gather_completed(*(self.chain(search, seed, nfe) for seed, nfe in enumerate(chains)))

    async def chain(self, search: Search, seed: int, nfe: int) -> Candidate | None:
        """Make one image for this many NFE; None where all children of a step failed."""
        last = search.steps - 1
        state = await search.sample(seed, stop=0)
        await search.score(state)
        while state.step < last:
            # Over all steps the children add up to nfe - 1; where they cannot be equally many, late steps get more.
            count = (nfe - 1 + state.step) // last
            children = await scored(search, [search.child(state, state.step + 1, i) for i in range(count)])
            if not children:
                return None
            state = self._draw(search, children)
        return await search.advance(state)  # the last step has no noise

    def _draw(self, search: Search, children: list[Scored]) -> Candidate:
        values = np.array([found.score for found in children])
        if self.alpha == 0:
            return children[int(np.argmax(values))].candidate
        weights = np.exp((values - values.max()) / self.alpha)
        return children[int(search.rng.choice(len(children), p=weights / weights.sum()))].candidate

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        chains = self._chains(budget, costs)
        return Plan.of(
            ("sample", len(chains), Cost()),
            ("score", sum(chains), costs.score),
            ("advance", sum(chains), Cost()),
        )

    def _whole(self, costs: Costs) -> int:
        """Return the NFE of a chain with all of its children."""
        return 1 + self.children * (costs.steps - 1)

    def _chains(self, budget: Budget, costs: Costs) -> list[int]:
        """Return the NFE of each chain that the budget pays for."""
        nfe = budget.allowance(costs)
        whole = self._whole(costs)
        count = Budget(nfe, budget.images).count(Cost(whole, 1)) or 0
        rest = int(nfe - count * whole)
        if rest >= costs.steps and (budget.images is None or count < budget.images):
            return [whole] * count + [rest]
        return [whole] * count
