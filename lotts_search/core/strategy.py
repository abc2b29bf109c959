"""What a strategy is. A new one is one dataclass in one file::

    @dataclass
    class FirstOfTwo(Strategy):
        "Two images, the better one wins."

        async def run(self, search: Search) -> None:
            await gather_completed(search.sample(0), search.sample(1))

        def plan(self, budget: Budget, costs: Costs) -> Plan:
            return Plan({"sample": 2}, 2 * costs.sample.nfe)

It never touches tensors, actors or files. Every complete candidate is scored and the best one wins.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from lotts_search.core.budget import Budget, Cost, Costs
from lotts_search.core.candidate import Candidate, Mask
from lotts_search.core.handle import Search
from lotts_search.core.virtual_time import Trial, gather_completed, repeat
from lotts_search.errors import BadInput

__all__ = [
    "Budget",
    "Candidate",
    "Cost",
    "Costs",
    "Mask",
    "Plan",
    "Search",
    "Strategy",
    "Trial",
    "allowance",
    "check_noise",
    "gather_completed",
    "paid",
    "repeat",
    "scored",
    "staged",
]


@dataclass(frozen=True)
class Plan:
    """What a strategy is going to do with a budget.

    Attributes:
        trials: number of trials of each kind (sample, localize, refine, …); of scores only those that cost NFE.
        nfe: what they cost.
        exact: False where the scores decide on the trials: then ``nfe`` is the most that they cost, and ``trials`` are
            those that are known beforehand.
    """

    trials: dict[str, int]
    nfe: float
    exact: bool = True

    @classmethod
    def of(cls, *lines: tuple[str, int, Cost]) -> Plan:
        """A plan from lines (kind, number, cost of one); lines without trials are left out, lines of a kind added."""
        trials: dict[str, int] = {}
        for kind, number, _ in lines:
            if number:
                trials[kind] = trials.get(kind, 0) + number
        return cls(trials, sum((number * cost.nfe for _, number, cost in lines), 0.0))


@dataclass
class Strategy(ABC):
    """Decides which trials to run. Subclasses are dataclasses; their fields are the strategy's settings.

    Attributes:
        takes_image: whether it can begin from a given image (``search.image``).
        nested: whether a search under a small budget is the beginning of the one under a larger budget; a study then
            runs the largest alone.
        rewrites: whether it asks the rewriter (``search.rewrite``).
        source: where it comes from: authors, year, title, algorithm; "" for one's own.
        formula: what it costs in NFE, in terms of its settings, T (steps), t0 (start of a refinement) and L (NFE of a
            localization). Read by people alone; :meth:`plan` is what counts.
    """

    takes_image: ClassVar[bool] = False
    nested: ClassVar[bool] = False
    rewrites: ClassVar[bool] = False
    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""

    @abstractmethod
    async def run(self, search: Search) -> None:
        """Search. May await the calls of ``search``, :func:`gather_completed` and :func:`repeat`, and nothing else."""

    @abstractmethod
    def plan(self, budget: Budget, costs: Costs) -> Plan:
        """What :meth:`run` is going to do, from pure noise, if nothing fails and no target stops it.

        Raises:
            BadInput: the budget limits neither NFE nor images, and the strategy would use all it gets.
        """

    def least(self, costs: Costs, image: bool = False) -> Cost:
        """The smallest budget with which it can begin, from pure noise or from a given image."""
        return costs.sample

    def settings(self) -> dict[str, object]:
        """The values of its fields, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def staged(costs: Costs, kind: str, count: int, start: int, stops: Sequence[int]) -> Iterator[tuple[str, int, Cost]]:
    """Lines of a plan for ``count`` candidates, made by trials of a ``kind`` that begin at step ``start``, which all go
    on from each of the ``stops`` to the next and are scored at each, the last being T. Whoever goes on from whom, it
    costs ``count · (T − start)`` NFE."""
    yield kind, count, costs.segment(start, stops[0])
    for at, stop in pairwise(stops):
        yield "score", count, costs.score
        yield "advance", count, costs.segment(at, stop, scored=True)


async def scored(search: Search, trials: Iterable[Trial[Candidate]]) -> list[tuple[int, Candidate, float]]:
    """Wait for candidates and score those that are partial.

    Returns:
        The place of each among the trials, the candidate and its score; those that were refused or failed are left out.
    """

    async def one(place: int, trial: Trial[Candidate]) -> tuple[int, Candidate, float]:
        candidate = await trial
        return place, candidate, await search.score(candidate)

    return await gather_completed(*(one(place, trial) for place, trial in enumerate(trials)))


def check_noise(search: Search) -> None:
    """Refuse a solver without noise: of strategies that branch trajectories, all branches would be the same.

    Raises:
        BadInput: eta is 0.
    """
    if search.eta == 0:
        raise BadInput("this strategy branches trajectories by the noise of the solver: eta must be above 0, not 0")


def allowance(budget: Budget, costs: Costs) -> float:
    """NFE that a budget gives to a strategy that decides itself how many go into an image: without a limit in NFE, N
    images stand for the steps of N samples.

    Raises:
        BadInput: it limits neither NFE nor images.
    """
    if budget.nfe is not None:
        return budget.nfe
    return paid(budget, costs.sample) * costs.sample.nfe


def paid(budget: Budget, cost: Cost, most: int | None = None) -> int:
    """How many trials of that cost ``budget`` pays for, at most ``most``.

    Raises:
        BadInput: neither sets a limit.
    """
    counts = [count for count in (budget.count(cost), most) if count is not None]
    if not counts:
        raise BadInput("the number of trials needs a budget in NFE or images")
    return min(counts)
