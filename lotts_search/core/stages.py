"""Candidates that advance side by side through stages, with a score at the end of each and fewer of them in the next."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lotts_search.core.costs import total
from lotts_search.core.strategy import MOST, BadInput, Budget, Cost, Costs, staged

PER_IMAGE = 1000
"""Most candidates that begin for each image of a budget that limits only images."""


@dataclass(frozen=True)
class Stages:
    """The stages of a trajectory, and what candidates in them cost.

    Attributes:
        kind: of the trials that start the candidates: sample or refine.
        start: step that they start at.
        stops: step of each stage's end, the last being T.
        shares: how many of the first stage's candidates each stage has, 1 at first and never more than before.
    """

    kind: str
    start: int
    stops: Sequence[int]
    shares: Sequence[float]

    def counts(self, count: int) -> list[int]:
        """Return the number of candidates of each stage when the first has ``count``; the last makes images."""
        return [min(count, max(1, round(count * share))) for share in self.shares]

    def lines(self, costs: Costs, count: int) -> Iterator[tuple[str, int, Cost]]:
        """Return the plan of ``count`` candidates."""
        return staged(costs, self.kind, self.counts(count), self.start, self.stops)

    def cost(self, costs: Costs, count: int = 1) -> Cost:
        """Return the cost of ``count`` candidates."""
        return total(self.lines(costs, count))

    def paid(self, budget: Budget, costs: Costs, most: int | None = None) -> int:
        """Return for how many candidates the budget pays, at most ``most``.

        Raises:
            BadInput: neither the budget nor ``most`` sets a limit, or it pays for more than :data:`MOST`, or for more than
                :data:`PER_IMAGE` per image: one of images alone does not limit those that end early.
        """
        count = budget.paid(self.cost(costs), most)
        if self.shares[-1] == 1 or count == most:
            return count
        limit = MOST if budget.nfe is not None or budget.flops is not None else min(MOST, PER_IMAGE * max(count, 1))
        high = max(count, limit) if most is None else min(most, max(count, limit))
        found = count + bisect_left(
            range(count + 1, high + 1), True, key=lambda n: not budget.pays(self.cost(costs, n))
        )
        if found == high != most:
            raise BadInput(
                f"a budget of {budget} pays for {found} candidates or more, of which a share of {self.shares[-1]:.3g} become images: "
                "keep more of them, or give a budget in NFE"
            )
        return found
