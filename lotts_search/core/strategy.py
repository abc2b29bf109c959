"""What a strategy is, and everything that a strategy file imports. A new strategy is one dataclass in one file::

    @dataclass
    class BestOfTwo(Strategy):
        "Sample two images; the better one wins."

        async def run(self, search: Search) -> None:
            await gather_completed(search.sample(0), search.sample(1))

        def plan(self, budget: Budget, costs: Costs) -> Plan:
            return Plan.of(("sample", budget.paid(costs.sample, 2), costs.sample))

It never touches tensors, actors or files. Every complete candidate is scored, and the best one wins.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

from lotts_search.core.budget import CURRENCIES, EPSILON, UNCOUNTED, Budget
from lotts_search.core.candidate import Candidate, Mask, score_of
from lotts_search.core.costs import Cost, Costs, total
from lotts_search.core.handle import Search
from lotts_search.core.space import Space, Span, tunable
from lotts_search.core.virtual_time import Trial, gather_completed, repeat
from lotts_search.errors import BadInput, notice
from lotts_search.work.masks import (
    AttentionMask,
    ConceptMask,
    DisagreementMask,
    ErrorContrastMask,
    FusionMask,
    GivenMask,
    MaskSource,
    QualityMask,
    RandomMask,
    WholeMask,
)
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import MOST_STEPS, Background, Blank, Noise

__all__ = [
    "AttentionMask", "Background", "BadInput", "Blank", "Budget", "Candidate", "ConceptMask", "Cost", "Costs",
    "DisagreementMask", "ErrorContrastMask", "FusionMask", "GivenMask", "Mask", "MaskSource", "ModelInfo", "Noise",
    "Plan", "QualityMask", "RandomMask", "Scored", "Search", "Space", "Span", "Strategy", "Trial", "WholeMask", "gather_completed",
    "notice", "repeat", "score_of", "scored", "staged", "tunable",
]  # fmt: skip


LEAST = 1 / MOST_STEPS
"""Least share of a trajectory: one step of the most."""
MOST = 100_000
"""Most of what a setting counts: a strategy begins that many trials at once."""
MOST_PROMPTS = 100
"""Most revised prompts that a strategy asks for at a time: a rewriter writes them in one call."""
FREE = frozenset({"score", "compare", "compose"})
"""Kinds of trials that a plan counts only where they cost NFE."""


@dataclass(frozen=True)
class Plan:
    """What a strategy is going to do with a budget.

    Attributes:
        trials: number of trials of each kind (sample, localize, refine, …); of scores, only those that cost NFE.
        nfe: their total cost.
        exact: False where the scores decide on the trials: the costs are then the most that they can be, and ``trials``
            holds only those that are known beforehand.
        images, flops: their total cost in complete images and FLOPs; None = not known.
    """

    trials: dict[str, int]
    nfe: float
    exact: bool = True
    images: int | None = None
    flops: float | None = None

    @classmethod
    def of(cls, *lines: tuple[str, int, Cost]) -> Plan:
        """Make a plan from lines (kind, number, cost of one). Lines of one kind add up; a number of 0 is left out."""
        trials: dict[str, int] = {}
        for kind, number, cost in lines:
            if number and (cost.nfe or kind not in FREE):
                trials[kind] = trials.get(kind, 0) + number
        cost = total(lines)
        return cls(trials, cost.nfe, True, cost.images, cost.flops)

    @classmethod
    def within(cls, budget: Budget, *costs: Cost, trials: dict[str, int] | None = None) -> Plan:
        """Make the plan of a strategy that lets the scores decide how it spends a budget.

        Args:
            costs: of all trials, or groups of trials, that it may choose among: what the budget does not limit, the dearest of
                them decides.
            trials: those that are certain.

        Raises:
            BadInput: the budget limits neither NFE nor images nor FLOPs.
        """
        if not budget.counted:
            raise BadInput(UNCOUNTED)
        most = {name: min(_bounds(budget, costs, name), default=math.inf) for name in CURRENCIES}
        images, flops = (None if math.isinf(most[name]) else most[name] for name in ("images", "flops"))
        return cls(trials or {}, most["nfe"], False, None if images is None else int(images + EPSILON), flops)


def _bounds(budget: Budget, costs: Iterable[Cost], currency: str) -> Iterator[float]:
    """Yield the most that each limit of a budget lets trials cost in a currency."""
    for name in CURRENCIES:
        limit = getattr(budget, name)
        if limit is None:
            continue
        pairs = [(getattr(cost, currency), getattr(cost, name)) for cost in costs]
        if name == currency:
            yield limit
        elif all(by for of, by in pairs if of):
            yield limit * max((of / by for of, by in pairs if of), default=0.0)


@dataclass
class Strategy(ABC):
    """Decides which trials to run. Subclasses are dataclasses; their fields are the strategy's settings.

    Attributes:
        takes_image: whether it can start from a given image (``search.image``).
        nested: whether a search with a small budget is the beginning of the one with a larger budget; a study then
            runs only the largest.
        rewrites: whether it calls the rewriter (``search.rewrite``).
        source: where it comes from: authors, year, title, algorithm; "" where it has no source.
        formula: its cost in NFE, in terms of its settings, T (steps), t0 (start of a refinement) and L (NFE of a
            localization). For readers only; :meth:`plan` is what counts.
        space: settings worth tuning, each with the numbers or choices that ``lotts-search tune`` tries.
    """

    takes_image: ClassVar[bool] = False
    nested: ClassVar[bool] = False
    rewrites: ClassVar[bool] = False
    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    space: ClassVar[Space] = tunable()

    @abstractmethod
    async def run(self, search: Search) -> None:
        """Search. May await only the calls of ``search``, :func:`gather_completed` and :func:`repeat`."""

    @abstractmethod
    def plan(self, budget: Budget, costs: Costs) -> Plan:
        """Return what :meth:`run` does from pure noise with this budget, if nothing fails and no target stops it.

        Raises:
            BadInput: the budget limits neither NFE nor images nor FLOPs, and the strategy would use all that it gets.
        """

    def least(self, costs: Costs, image: bool = False) -> Cost:
        """Return the smallest budget with which it can start, from pure noise or from a given image."""
        return costs.sample

    def check(self, costs: Costs, info: ModelInfo) -> None:  # noqa: B027, most strategies have nothing to refuse
        """Refuse settings that cannot work on this model with these steps; called before anything is paid for. A setting
        that can work and has no effect there is reported by :func:`~lotts_search.errors.notice`.

        Raises:
            BadInput: the message names the setting and its valid values.
        """

    def image_prompts(self, prompt: str) -> list[str]:
        """Return the prompts that images are made with, as far as they are known before a search for ``prompt``: a text
        encoder that does not read all of them is reported."""
        return [prompt]

    def mask_sources(self, costs: Costs) -> list[MaskSource]:
        """Return the mask sources that it localizes with, as far as its settings tell: they are checked on the model before
        the first trial."""
        return [value for value in self.settings().values() if isinstance(value, MaskSource)]

    def settings(self) -> dict[str, object]:
        """Return the values of its fields, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def check_choices(self) -> None:
        """Refuse settings that are none of the choices of their type, such as ``Literal["fast", "slow"]``; every search
        begins with this.

        Raises:
            BadInput: the message names the setting and its choices.
        """
        try:
            hints = typing.get_type_hints(type(self))
        except NameError:  # a type that is known inside of a function only
            return
        for name, value in self.settings().items():
            parts = typing.get_args(hints[name]) if not _is_literal(hints[name]) else (hints[name],)
            choices = [choice for part in parts if _is_literal(part) for choice in typing.get_args(part)]
            others = [part for part in parts if not _is_literal(part)]
            if choices and value not in choices and not any(isinstance(value, part) for part in others):
                raise BadInput(f"{name} must be {' or '.join(map(str, choices))}, not {value!r}")

    def check_range(self, name: str, low: float, high: float) -> None:
        """Refuse a setting outside ``low..high``; a setting of None passes.

        Raises:
            BadInput: the setting is outside, or not a number.
        """
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            raise BadInput(f"{name} must be within {low:g}..{high:g}, not {value}")

    def check_minimum(self, **minimums: float) -> None:
        """Refuse settings below their minimum, and counts above :data:`MOST`; a setting of None passes. For ``__post_init__``.

        Raises:
            BadInput: a setting is too small, too large, infinite or not a number.
        """
        for name, minimum in minimums.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= minimum):
                raise BadInput(f"{name} must be {minimum} or more, not {value}")
            if isinstance(value, int) and value > MOST:
                raise BadInput(f"{name} must be within {minimum}..{MOST}, not {value}")

    def check_share(self, name: str, of: str = "the trajectory") -> None:
        """Refuse a setting that is no share of at least :data:`LEAST` and below 1. For ``__post_init__``.

        Raises:
            BadInput: it is something else, such as a number of steps.
        """
        value = getattr(self, name)
        if not LEAST <= value < 1:
            raise BadInput(
                f"{name} must be a share of {of}, {LEAST:g} or more and below 1, not {value:g}: 5 of 50 steps are {name}=0.1"
            )


def _is_literal(hint: object) -> bool:
    return typing.get_origin(hint) is typing.Literal


class Scored(NamedTuple):
    """A candidate with its score, and the place of the trial that made it among the trials passed to :func:`scored`."""

    candidate: Candidate
    score: float
    place: int


async def scored(search: Search, trials: Iterable[Trial[Candidate]]) -> list[Scored]:
    """Wait for candidates, and score those that are partial. Refused and failed ones are left out."""

    async def one(place: int, trial: Trial[Candidate]) -> Scored:
        candidate = await trial
        return Scored(candidate, await search.score(candidate), place)

    return await gather_completed(*(one(place, trial) for place, trial in enumerate(trials)))


def staged(
    costs: Costs, kind: str, counts: Sequence[int], start: int, stops: Sequence[int]
) -> Iterator[tuple[str, int, Cost]]:
    """Yield plan lines for candidates that trials of this ``kind`` start at step ``start`` and that are scored at each of the
    ``stops``, the last being T. ``counts`` has their number up to each stop. The cost is the same whichever survive."""
    yield kind, counts[0], costs.segment(start, stops[0])
    for (at, stop), (scored_, left) in zip(pairwise(stops), pairwise(counts), strict=True):
        yield "score", scored_, costs.score
        yield "advance", left, costs.segment(at, stop, scored=True)
