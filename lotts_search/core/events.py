"""Events: what a search tells while it runs. ``asearch(…, on_event=…)`` calls a function with each,
:func:`lotts_search.api.stream` iterates over them; the command line and the endpoint show them.

All but :class:`Preview` come in virtual order, which is the same in every run of a search. An event holds references to
what the search holds: a listener must not change the arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lotts_search.core.trial_table import TrialRecord
from lotts_search.work.requests import Bytes, Located, Sampling

if TYPE_CHECKING:
    from lotts_search.core.budget import Budget
    from lotts_search.core.result import SearchResult


@dataclass(frozen=True)
class SearchStarted:
    """The arguments were checked, and the first trial is about to start.

    Attributes:
        search_id: hash of everything that decides the search.
        budget, sampling: the limits and settings in force, defaults filled in.
    """

    search_id: str
    budget: Budget
    sampling: Sampling


@dataclass(frozen=True)
class TrialStarted:
    """A trial was requested, and its cost is reserved.

    Attributes:
        trial_id, parent_id: ids of this trial and of the trial whose candidate it works on.
        kind: as in :class:`~lotts_search.core.trial_table.TrialRecord`.
        nfe: reserved denoising steps.
    """

    trial_id: str
    parent_id: str | None
    kind: str
    nfe: float


@dataclass(frozen=True)
class TrialFinished:
    """A trial ended: it is a row of the trial table now.

    Attributes:
        record: the row; its ``status`` says how it ended.
        image: [h, w, 3] uint8, the image that the trial made or, of a partial candidate, its x0 prediction; None without one.
        spent: share of the budget in NFE or images that is spent, 0..1; 0 where neither is limited.
    """

    record: TrialRecord
    image: Bytes | None
    spent: float


@dataclass(frozen=True)
class MaskFound:
    """A region was located; follows the :class:`TrialFinished` of its trial.

    Attributes:
        trial_id: the localization.
        parent_id: the trial that made the image.
        located: the mask with its stages.
    """

    trial_id: str
    parent_id: str | None
    located: Located


@dataclass(frozen=True)
class NewBest:
    """The best complete image so far; follows the :class:`TrialFinished` of its trial.

    Attributes:
        trial_id: the trial that made it.
        score: guiding score.
        image: [h, w, 3] uint8.
        spent: as in :class:`TrialFinished`.
    """

    trial_id: str
    score: float
    image: Bytes
    spent: float


@dataclass(frozen=True)
class Preview:
    """An unfinished image of the search: the decoded x0 prediction of its first trajectory. At most one in a search, as soon
    as it is there, and only for listeners that ask for it (``preview=True``).

    Attributes:
        image: [h, w, 3] uint8.
        step, steps: steps done, and T.
    """

    image: Bytes
    step: int
    steps: int


@dataclass(frozen=True)
class SearchEnded:
    """The last event of a search that returned a result, or that failed or was interrupted with one."""

    result: SearchResult


Event: TypeAlias = SearchStarted | TrialStarted | TrialFinished | MaskFound | NewBest | Preview | SearchEnded
