"""What a strategy is. A new one is one dataclass in one file::

    @dataclass
    class FirstOfTwo(Strategy):
        "Two pictures, the better one wins."

        async def run(self, search: Search) -> None:
            await gather(search.sample(0), search.sample(1))

        def plan(self, budget: Budget, costs: Costs) -> Plan:
            return Plan({"sample": 2}, 2 * costs.sample.nfe)

It never touches tensors, actors or files. Every complete candidate is scored and the best one wins.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from lotts_search.budget import Budget, Cost, Costs
from lotts_search.candidate import Candidate, Mask
from lotts_search.errors import BadInput
from lotts_search.handle import Search
from lotts_search.virtual import Trial, gather, repeat

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
    "gather",
    "paid",
    "repeat",
]


@dataclass(frozen=True)
class Plan:
    """What a strategy is going to do with a budget.

    Attributes:
        trials: number of trials of each kind (sample, localize, refine, …) apart from scores.
        nfe: what they cost.
    """

    trials: dict[str, int]
    nfe: float

    @classmethod
    def of(cls, *lines: tuple[str, int, Cost]) -> Plan:
        """A plan from lines (kind, number, cost of one); lines without trials are left out."""
        trials = {kind: number for kind, number, _ in lines if number}
        return cls(trials, sum((number * cost.nfe for _, number, cost in lines), 0.0))


@dataclass
class Strategy(ABC):
    """Decides which trials to run. Subclasses are dataclasses; their fields are the strategy's settings.

    Attributes:
        takes_image: whether it can begin from a given picture (``search.image``).
        source: where it comes from: authors, year, title, algorithm; "" for one's own.
        formula: what it costs in NFE, in terms of its settings, T (steps), t0 (start of a refinement) and L (NFE of a
            localization). Read by people alone; :meth:`plan` is what counts.
    """

    takes_image: ClassVar[bool] = False
    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""

    @abstractmethod
    async def run(self, search: Search) -> None:
        """Search. May await the calls of ``search``, :func:`gather` and :func:`repeat`, and nothing else."""

    @abstractmethod
    def plan(self, budget: Budget, costs: Costs) -> Plan:
        """What :meth:`run` is going to do, from pure noise, if nothing fails and no target stops it.

        Raises:
            BadInput: the budget limits neither NFE nor pictures, and the strategy would use all it gets.
        """

    def least(self, costs: Costs, image: bool = False) -> Cost:
        """The smallest budget with which it can begin, from pure noise or from a given picture."""
        return costs.sample

    def settings(self) -> dict[str, object]:
        """The values of its fields, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def paid(budget: Budget, cost: Cost, most: int | None = None) -> int:
    """How many trials of that cost ``budget`` pays for, at most ``most``.

    Raises:
        BadInput: neither sets a limit.
    """
    counts = [count for count in (budget.count(cost), most) if count is not None]
    if not counts:
        raise BadInput("the number of trials needs a budget in NFE or pictures")
    return min(counts)
