"""What strategies share that draw children at every step of a trajectory: their chains, and what these cost."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lotts_search.core.budget import Budget
from lotts_search.core.candidate import Candidate
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.handle import Search
from lotts_search.core.strategy import Plan, Scored, Strategy, scored
from lotts_search.core.virtual_time import gather_completed, repeat


@dataclass
class Chains(Strategy):
    """A strategy that at every step draws M children by new noise and continues with one, chosen by their x0 predictions.

    A child's score pays for the next step of all of its children. Under a budget of N images alone, the chains
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
        chains = self.shares(search.budget.left, search.costs)
        await gather_completed(*(self.sample(search, seed, nfe) for seed, nfe in enumerate(chains)))

    async def sample(self, search: Search, seed: int, nfe: int) -> Candidate | None:
        """Make one image from pure noise for this many NFE; None where all children of a step failed."""
        return await self.chain(search, await search.sample(seed, stop=0), nfe)

    async def chain(self, search: Search, state: Candidate, nfe: int) -> Candidate | None:
        """Carry a candidate to the last step for this many NFE; None where all children of a step failed."""
        await search.score(state)
        for count in self.counts(search.steps - state.step, nfe):
            chosen = await self.step(search, state, count)
            if chosen is None:
                return None
            state = chosen
        return await search.advance(state)  # the last step has no noise

    async def step(self, search: Search, state: Candidate, count: int) -> Candidate | None:
        """Take one step with this many children and return the chosen one; None where all of them failed."""
        children = await scored(search, [search.child(state, state.step + 1, i) for i in range(count)])
        return await self.choose(search, children) if children else None

    def counts(self, steps: int, nfe: int) -> Iterator[int]:
        """Yield the number of children at each step of a chain of this many steps and NFE, except for the last step."""
        for number in range(steps - 1):
            # Over all steps they add up to nfe - 1; where the children cannot be equally many, late steps get more.
            yield (nfe - 1 + number) // (steps - 1) - self.beside

    def selection(self, costs: Costs, step: int, count: int) -> Cost:
        """Return what :meth:`choose` costs without NFE, with ``count`` children at this step."""
        return Cost()

    def selections(self, costs: Costs, start: int, nfe: int) -> Cost:
        """Return what all choices of a chain of this many NFE from step ``start`` cost without NFE."""
        counts = enumerate(self.counts(costs.steps - start, nfe), start + 1)
        return sum((self.selection(costs, step, count) for step, count in counts), Cost())

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        chains = self.shares(budget, costs)
        return self.planned(chains, costs, 0, ("sample", len(chains), Cost()))

    def planned(self, chains: Sequence[int], costs: Costs, start: int, *before: tuple[str, int, Cost]) -> Plan:
        """Return the plan of chains of these NFE from step ``start``, after the trials ``before`` (kind, number, cost of one);
        it is exact where only children cost NFE."""
        plan = Plan.of(
            *before,
            ("score", sum(chains), costs.score),
            ("advance", sum(chains) - len(chains), Cost()),
            ("advance", len(chains), costs.image),
            *(("compare", 1, self.selections(costs, start, nfe)) for nfe in chains),
        )
        return replace(plan, trials=Plan.of(*before).trials, exact=False) if self.beside else plan

    def whole(self, steps: int) -> int:
        """Return the NFE of a chain of this many steps with all of its children."""
        return 1 + (self.children + self.beside) * (steps - 1)

    def narrowest(self, steps: int) -> int:
        """Return the NFE of a chain of this many steps with one child per step."""
        return 1 + (1 + self.beside) * (steps - 1)

    def chain_cost(self, costs: Costs, start: int, nfe: int) -> Cost:
        """Return the most that a chain of this many NFE from step ``start`` costs."""
        return nfe * costs.score + costs.image + self.selections(costs, start, nfe)

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return self.chain_cost(costs, 0, self.narrowest(costs.steps))

    def shares(self, budget: Budget, costs: Costs, start: int = 0, before: Cost = Cost()) -> list[int]:  # noqa: B008
        """Return the NFE of each chain that the budget pays for.

        Args:
            start: the step that chains begin at.
            before: what is paid before each chain, from pure noise or a re-noised image on.
        """
        steps = costs.steps - start

        def cost(nfe: int) -> Cost:
            return before + self.chain_cost(costs, start, nfe)

        left = budget.allowed(before + costs.segment(start, costs.steps))
        whole = self.whole(steps)
        count = left.paid(cost(whole))
        left = left.minus(count * cost(whole))
        # The most NFE that another chain can have.
        fewer = range(self.narrowest(steps), whole)
        paid = bisect_left(fewer, True, key=lambda nfe: not left.pays(cost(nfe)))
        return [whole] * count + ([fewer[paid - 1]] if paid else [])
