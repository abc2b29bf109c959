"""RolloverBudget: rollover budget forcing, RBF (Kim et al. 2025): steps that need few children leave more to later ones."""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.strategy import (
    Budget,
    Candidate,
    Costs,
    Plan,
    Search,
    Strategy,
    allowance,
    check_noise,
    scored,
)
from lotts_search.errors import BadInput

EPSILON = 1e-9
SHARE = 0.05
"""Of the NFE that go into the choice of a start noise; 25 of 500 in the source."""
IMAGES = 9
"""Samples whose NFE one image gets where nothing but time limits the search."""


@dataclass
class RolloverBudget(Strategy):
    """One trajectory; at each step children are drawn one by one until one scores better than all before it.

    The best of several start noises begins. Each step has a quota of children: the first whose x0 prediction scores
    better than the best so far goes on at once, and the rest of the quota rolls over to the next step; where none does,
    the best child of the step goes on. What is left in the end begins anew. A budget of N images without NFE stands
    for the steps of N samples.

    Attributes:
        initial: start noises; None = a twentieth of the NFE, as in the source.
        quota: children at a step, before what rolls over; None = what the budget pays.
    """

    source = (
        "Kim et al. 2025, Inference-time scaling for flow models via stochastic generation and rollover budget forcing"
    )
    formula = "at most initial + quota · (T - 1)"

    initial: int | None = None
    quota: int | None = None

    def __post_init__(self) -> None:
        for name in ("initial", "quota"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} must be 1 or more, not {value}")

    async def run(self, search: Search) -> None:
        check_noise(search)
        limits, costs, seed = search.budget.left, search.costs, 0
        whole = allowance(limits, costs) if limits.counted else IMAGES * costs.sample.nfe
        while search.budget.left.pays(costs.sample):
            nfe = whole - (search.budget.reserved.nfe if limits.counted else 0)
            if nfe < costs.sample.nfe:
                return
            seed += await self.trajectory(search, nfe, seed)

    async def trajectory(self, search: Search, nfe: float, seed: int) -> int:
        """One image for at most ``nfe`` NFE, from start noises of ``seed`` on. Returns their number."""
        later = search.steps - 1
        count = int(min(self.initial or max(1.0, SHARE * nfe), nfe - later))
        quota = min(self.quota or nfe, (nfe - count) / later) if later else 0.0
        starts = await scored(search, [search.sample(seed + i, stop=0) for i in range(count)])
        _, one, record = max(starts, key=_score, default=(0, None, 0.0))
        left = 0.0
        while one is not None and one.step < later:
            parent, left, children = one, left + quota, list[tuple[int, Candidate, float]]()
            most, found = int(left + EPSILON), False
            for i in range(most):
                children += await scored(search, [search.advance(parent, parent.step + 1, seed=i or None)])
                if children and children[-1][2] > record:
                    left, found = left - i - 1, True
                    break
            _, one, score = max(children, key=_score, default=(0, None, 0.0))
            record, left = max(record, score), left if found else left - most  # fractions add up to a child
        if one is not None:
            await search.advance(one)  # the last step has no noise
        return count

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        return Plan({}, allowance(budget, costs), exact=False)


def _score(found: tuple[int, Candidate, float]) -> float:
    return found[2]
