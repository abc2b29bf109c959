"""What strategies share that draw children at every step of a trajectory: their chains, and what these cost."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from lotts_search.core.budget import Budget, Cost, Costs
from lotts_search.core.candidate import Candidate
from lotts_search.core.handle import Search
from lotts_search.core.strategy import Plan, Scored, Strategy, scored
from lotts_search.core.virtual_time import gather_completed, repeat


@dataclass
class Chains(Strategy):
    """A strategy that at every step draws M children by new noise and continues with one, chosen by their x0 predictions.

    A child's score pays for the next step of all of its children. Under a budget of N images without NFE, the chains
    take the steps of N samples. What whole chains leave over funds one more chain with fewer children per step.

    Attributes:
        children: M, children per step.
    """

    children: int = 20

    def __post_init__(self) -> None:
        self.check_minimum(children=1)

    @property
    def beside(self) -> int:
        """The most NFE per step beside those of the children."""
        return 0

    @abstractmethod
    async def choose(self, search: Search, children: list[Scored]) -> Candidate:
        """Return the candidate to continue with, from at least one scored child."""

    async def run(self, search: Search) -> None:
        search.check_noise()
        if not search.budget.left.counted:
            await repeat(lambda seed: self.sample(search, seed, self.whole(search.steps)), None)
            return
        chains = self.shares(search.budget.left, search.costs.sample)
        await gather_completed(*(self.sample(search, seed, nfe) for seed, nfe in enumerate(chains)))

    async def sample(self, search: Search, seed: int, nfe: int) -> Candidate | None:
        """Make one image from pure noise for this many NFE; None where all children of a step failed."""
        return await self.chain(search, await search.sample(seed, stop=0), nfe)

    async def chain(self, search: Search, state: Candidate, nfe: int) -> Candidate | None:
        """Carry a candidate to the last step for this many NFE; None where all children of a step failed."""
        steps = search.steps - 1 - state.step
        await search.score(state)
        for number in range(steps):
            # Over all steps they add up to nfe - 1; where the children cannot be equally many, late steps get more.
            count = (nfe - 1 + number) // steps - self.beside
            chosen = await self.step(search, state, count)
            if chosen is None:
                return None
            state = chosen
        return await search.advance(state)  # the last step has no noise

    async def step(self, search: Search, state: Candidate, count: int) -> Candidate | None:
        """Take one step with this many children and return the chosen one; None where all of them failed."""
        children = await scored(search, [search.child(state, state.step + 1, i) for i in range(count)])
        return await self.choose(search, children) if children else None

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        chains = self.shares(budget, costs.sample)
        return self.planned(chains, costs, ("sample", len(chains), Cost()))

    def planned(self, chains: Sequence[int], costs: Costs, *before: tuple[str, int, Cost]) -> Plan:
        """Return the plan of chains of these NFE after the trials ``before`` (kind, number, cost of one); it is exact where
        only children cost NFE."""
        plan = Plan.of(*before, ("score", sum(chains), costs.score), ("advance", sum(chains), Cost()))
        return Plan(Plan.of(*before).trials, plan.nfe, exact=False) if self.beside else plan

    def whole(self, steps: float) -> int:
        """Return the NFE of a chain of this many steps with all of its children."""
        return int(1 + (self.children + self.beside) * (steps - 1))

    def narrowest(self, steps: float) -> int:
        """Return the NFE of a chain of this many steps with one child per step."""
        return int(1 + (1 + self.beside) * (steps - 1))

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return Cost(self.narrowest(costs.steps), 1)

    def shares(self, budget: Budget, image: Cost, first: int = 0) -> list[int]:
        """Return the NFE of each chain that the budget pays for.

        Args:
            image: cost of an image of one trajectory; under a budget of N images the chains take its steps N times.
            first: NFE before each chain, part of ``image`` and of no chain.
        """
        nfe = budget.allowance(image)
        whole = first + self.whole(image.nfe - first)
        count = Budget(nfe, budget.images).count(Cost(whole, 1)) or 0
        rest = int(nfe - count * whole)
        chains = [whole - first] * count
        if rest >= first + self.narrowest(image.nfe - first) and (budget.images is None or count < budget.images):
            chains.append(rest - first)
        return chains
