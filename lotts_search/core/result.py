"""What a search returns, and the errors that carry what an unfinished search has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from lotts_search.core.budget import Budget, Ledger, count_images
from lotts_search.core.failures import Failures
from lotts_search.core.trial_table import TrialRecord, to_table
from lotts_search.errors import Failure
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Bytes, Located, Sampling

if TYPE_CHECKING:
    import pyarrow as pa

Status: TypeAlias = Literal["done", "target", "seconds", "interrupted"]


@dataclass(repr=False)
class SearchResult:
    """What a search found.

    Attributes:
        prompt, model, strategy, verifier, seed, sampling, budget: the arguments of the search.
        settings: the strategy's settings.
        status: done; target or seconds if that ended it; interrupted by Ctrl-C or cancellation.
        ledger: what was spent.
        trials: all trials in virtual order.
        images: images [h, w, 3] uint8 by the id of the trial that made them.
        located: masks with their stages, by the id of their trial.
        best: the trial with the highest guiding score, None where no image was finished.
        best_refined: the same among refined images only.
        rewriter: name of the rewriter; "" where the strategy uses none.
        priced_as: the published model at whose prices FLOPs are counted; None = the model itself.
    """

    prompt: str
    model: ModelInfo
    strategy: str
    settings: dict[str, object]
    verifier: str
    seed: int
    sampling: Sampling
    budget: Budget
    status: Status
    ledger: Ledger
    trials: list[TrialRecord]
    images: Mapping[str, Bytes]
    located: dict[str, Located]
    best: TrialRecord | None
    best_refined: TrialRecord | None
    rewriter: str = ""
    priced_as: str | None = None

    @property
    def image(self) -> Bytes | None:
        """The best image [h, w, 3] uint8."""
        return self.images[self.best.trial_id] if self.best is not None else None

    @property
    def score(self) -> float | None:
        """The best image's guiding score."""
        return self.best.score if self.best is not None else None

    @property
    def failures(self) -> Failures:
        """The failed trials: how many of which kinds, and the first error."""
        return Failures.of_records(self.trials)

    def __repr__(self) -> str:
        spent = f"{self.ledger.nfe:g} NFE, {count_images(self.ledger.images)}"
        failed = f", {self.failures}" if self.failures.count else ""
        return f"<search for {self.prompt!r} by {self.strategy}: {self.status}, score {self.score}, {spent}{failed}>"

    def to_table(self) -> pa.Table:
        """Return the trials as a table with the columns of :class:`~lotts_search.core.trial_table.TrialRecord`."""
        return to_table(self.trials)


class SearchFailed(Failure):
    """A search that ended without a single image.

    Attributes:
        result: its trials.
    """

    def __init__(self, message: str, result: SearchResult):
        super().__init__(message)
        self.result = result


class Interrupted(asyncio.CancelledError):
    """A search that was cancelled.

    Attributes:
        result: the result so far.
    """

    def __init__(self, result: SearchResult):
        super().__init__("the search was interrupted")
        self.result = result
