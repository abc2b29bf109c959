"""What strategies share that draw children at every step of a trajectory: their chains, and what these cost."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lotts_search.core.budget import Budget
from lotts_search.core.candidate import Candidate
from lotts_search.core.costs import Cost, Costs, total
from lotts_search.core.handle import Search
from lotts_search.core.strategy import Plan, Scored, Strategy, scored
from lotts_search.core.virtual_time import gather_completed, repeat

_APART = 2**20
"""Between the seeds of the start noises of one chain, above the number of chains."""


@dataclass
class Chains(Strategy):
    """A strategy that at every step draws M children by new noise and continues with one, chosen by their x0 predictions.

    A child's score pays for the next step of all of its children. Under a budget of N images alone, the chains
    take the steps of N samples. What whole chains leave over funds one more chain with fewer children per step.

    Attributes:
        children: M, children per step.
        choose_start: choose the start noise, too, among as many as there are children.
    """

    children: int = 20
    choose_start: bool = False

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
        count = self._starts(search.steps, nfe)
        # The first one is the start of a plain sample; those of other chains have other seeds.
        starts = [search.sample(seed + number * _APART, stop=0) for number in range(count)]
        if count == 1:
            return await self.chain(search, await starts[0], nfe)
        found = await scored(search, starts)
        return await self.chain(search, await self.choose(search, found), nfe, branched=True) if found else None

    async def chain(self, search: Search, state: Candidate, nfe: int, branched: bool = False) -> Candidate | None:
        """Carry a candidate to the last step; None where all children of a step failed.

        Args:
            nfe: of the whole chain, from where :meth:`sample` or a refinement began it.
            branched: whether the candidate was chosen among scored ones, which has paid for its next prediction.
        """
        for _, stop, count in self.stages(search.steps, state.step, nfe):
            if count == 1:
                state = await search.advance(state, stop)
            else:
                if not branched:
                    await search.score(state)  # pays for the prediction that all children share
                chosen = await self.step(search, state, count)
                if chosen is None:
                    return None
                state = chosen
            branched = count > 1
        return state

    async def step(self, search: Search, state: Candidate, count: int) -> Candidate | None:
        """Take one step with this many children and return the chosen one; None where all of them failed."""
        children = await scored(search, [search.child(state, state.step + 1, i) for i in range(count)])
        return await self.choose(search, children) if children else None

    def stages(self, steps: int, start: int, nfe: int) -> Iterator[tuple[int, int, int]]:
        """Yield the parts of a chain of this many NFE from step ``start`` to the last of ``steps``: where each begins and stops, and
        its number of children. Steps with one child join, since nothing is chosen there."""
        begin = start
        counts = itertools.islice(self.counts(steps, start, nfe), int(self._begins_with_choice(start)), None)
        for count, group in itertools.groupby([*counts, 1]):  # the last step has no noise
            length = len(list(group))
            for stop in [begin + length] if count == 1 else range(begin + 1, begin + length + 1):
                yield begin, stop, count
                begin = stop

    def counts(self, steps: int, start: int, nfe: int) -> Iterator[int]:
        """Yield how many start noises a chain of this many NFE chooses from, where it chooses, and how many children at each step
        that has noise."""
        choice = self._begins_with_choice(start)
        number, total = steps - 1 - start + int(choice), nfe - int(not choice)
        for place in range(number):
            # Where they cannot be equally many, early steps get more: what they choose decides most.
            yield (total + number - 1 - place) // number - self.beside

    def _starts(self, steps: int, nfe: int) -> int:
        """Return the number of start noises of a chain of this many NFE."""
        return next(self.counts(steps, 0, nfe)) if self.choose_start else 1

    def _begins_with_choice(self, start: int) -> bool:
        return self.choose_start and start == 0

    def selection(self, costs: Costs, step: int, count: int) -> Cost:
        """Return what :meth:`choose` costs without NFE, with ``count`` children at this step."""
        return Cost()

    def lines(self, costs: Costs, start: int, nfe: int) -> Iterator[tuple[str, int, Cost]]:
        """Yield what a chain of this many NFE from step ``start`` does and costs at most: kind, number, cost of one."""
        branched = False
        if start == 0:
            count = self._starts(costs.steps, nfe)
            yield "sample", count, Cost()
            if branched := count > 1:
                yield "score", count + self.beside, costs.score
                yield "compare", 1, self.selection(costs, 0, count)
        for begin, stop, count in self.stages(costs.steps, start, nfe):
            if count == 1:
                yield "advance", 1, costs.segment(begin, stop, scored=branched)
            else:
                yield "advance", count, Cost()
                yield "score", count + self.beside + int(not branched), costs.score
                yield "compare", 1, self.selection(costs, stop, count)
            branched = count > 1

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        chains = self.shares(budget, costs)
        return self.planned(chains, costs, 0)

    def planned(self, chains: Sequence[int], costs: Costs, start: int, *before: tuple[str, int, Cost]) -> Plan:
        """Return the plan of chains of these NFE from step ``start``, after the trials ``before`` (kind, number, cost of one);
        it is exact where only children cost NFE."""
        plan = Plan.of(*before, *itertools.chain.from_iterable(self.lines(costs, start, nfe) for nfe in chains))
        return replace(plan, trials=Plan.of(*before).trials, exact=False) if self.beside else plan

    def whole(self, steps: int, start: int = 0) -> int:
        """Return the NFE of a chain from step ``start`` to the last of ``steps`` with all of its children."""
        return self._nfe(self.children, steps, start)

    def narrowest(self, steps: int, start: int = 0) -> int:
        """Return the NFE of a chain from step ``start`` to the last of ``steps`` with one child per step."""
        return self._nfe(1, steps, start)

    def _nfe(self, children: int, steps: int, start: int) -> int:
        choice = self._begins_with_choice(start)
        return int(not choice) + (children + self.beside) * (steps - 1 - start + int(choice))

    def chain_cost(self, costs: Costs, start: int, nfe: int) -> Cost:
        """Return the most that a chain of this many NFE from step ``start`` costs."""
        return total(self.lines(costs, start, nfe))

    def least(self, costs: Costs, image: bool = False) -> Cost:
        return self.chain_cost(costs, 0, self.narrowest(costs.steps))

    def shares(self, budget: Budget, costs: Costs, start: int = 0, before: Cost = Cost()) -> list[int]:  # noqa: B008
        """Return the NFE of each chain that the budget pays for.

        Args:
            start: the step that chains begin at.
            before: what is paid before each chain, from pure noise or a re-noised image on.
        """
        left = budget.allowed(before + costs.segment(start, costs.steps))
        whole = self.whole(costs.steps, start)
        cost = before + self.chain_cost(costs, start, whole)
        count = left.paid(cost)
        rest = self.most(left.minus(count * cost), costs, start, whole - 1, before)
        return [whole] * count + ([rest] if rest else [])

    def most(self, budget: Budget, costs: Costs, start: int, limit: int, before: Cost = Cost()) -> int | None:  # noqa: B008
        """Return the most NFE, up to ``limit``, of a chain that the budget pays for; None where it pays for none.

        Args:
            start, before: as for :meth:`shares`.
        """
        narrowest = self.narrowest(costs.steps, start)
        possible = range(narrowest, limit + 1)
        paid = bisect_left(possible, True, key=lambda nfe: not budget.pays(before + self.chain_cost(costs, start, nfe)))
        return possible[paid - 1] if paid else None
