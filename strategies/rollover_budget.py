"""RolloverBudget, rollover budget forcing (RBF): steps that need few children leave their unused quota to later steps.

Source: Kim et al. 2025, "Inference-time scaling for flow models via stochastic generation and rollover budget forcing". A
step of the paper: draw children one by one, at most the quota; the first whose x0 prediction scores better than the best
so far continues at once, and the rest of the quota rolls over; where none does, the best child continues.
"""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import Budget, Cost, Costs, Plan, Scored, Search, Strategy, scored, tunable

EPSILON = 1e-9
"""Quotas may be fractions, which add up to whole children except for rounding."""
SHARE = 0.05
"""Share of the NFE that goes into the choice of a start noise; 25 of 500 in the source."""
IMAGES = 9
"""Samples whose NFE one image gets where nothing but time limits the search."""


@dataclass
class RolloverBudget(Strategy):
    """At each step draw children one by one until one scores better than all before it.

    The trajectory starts from the best of several start noises. What is left at its end starts another one. Under a
    budget of N images without NFE, it takes the steps of N samples.

    Attributes:
        initial: start noises; None = a twentieth of the NFE, as in the source.
        quota: children per step, without those rolled over; None = what the budget pays for.
    """

    source = (
        "Kim et al. 2025, Inference-time scaling for flow models via stochastic generation and rollover budget forcing"
    )
    formula = "at most initial + quota · (T - 1)"
    space = tunable(initial=(1, 2, 4, 8), quota=(1, 2, 4, 8))

    initial: int | None = None
    quota: int | None = None

    def __post_init__(self) -> None:
        self.check_minimum(initial=1, quota=1)

    async def run(self, search: Search) -> None:
        search.check_noise()
        costs = search.costs
        least = self.least(costs)
        whole = search.budget.left.allowed(costs.sample) if search.budget.left.counted else None
        seed = 0
        while search.budget.left.pays(least):
            nfe = IMAGES * costs.sample.nfe
            if whole is not None:
                left = whole.minus(search.budget.reserved)
                if not left.pays(least):
                    return
                nfe = left.minus(costs.image).fraction(costs.score)
            seed += await self.trajectory(search, nfe, seed)

    async def trajectory(self, search: Search, nfe: float, seed: int) -> int:
        """Make one image for at most ``nfe`` NFE, from start noises of the seeds ``seed``, ``seed + 1``, …

        Returns:
            The number of start noises.
        """
        last = search.steps - 1
        count = int(min(self.initial or max(1.0, SHARE * nfe), nfe - last))
        quota = min(self.quota or nfe, (nfe - count) / last) if last else 0.0
        starts = await scored(search, [search.sample(seed + i, stop=0) for i in range(count)])
        if not starts:
            return count
        state = max(starts, key=_score)
        record = state.score
        rolled_over = 0.0
        while state.candidate.step < last:
            step = state.candidate.step
            available = quota + rolled_over
            drawn = 0
            children: list[Scored] = []
            while drawn < int(available + EPSILON):
                children += await scored(search, [search.child(state.candidate, step + 1, drawn)])
                drawn += 1
                if children and children[-1].score > self.bar(starts, record):
                    break
            if not children:
                return count
            state = max(children, key=_score)
            record = max(record, state.score)
            rolled_over = available - drawn
        await search.advance(state.candidate)  # the last step has no noise
        return count

    def bar(self, starts: list[Scored], record: float) -> float:
        """Return the score above which a child continues at once.

        Args:
            starts: the start noises of the trajectory.
            record: the greatest score of the trajectory so far.
        """
        return record

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan.within(budget.allowed(costs.sample), self.least(costs), costs.score)

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return costs.steps * costs.score + costs.image


def _score(found: Scored) -> float:
    return found.score
