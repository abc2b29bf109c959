"""What a search has so far: the rows of its trials, its ledger, the arrays behind the handles, and the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from lotts_search.core.budget import Ledger
from lotts_search.core.candidate import Candidate, score_of
from lotts_search.core.costs import Cost
from lotts_search.core.dispatch import large
from lotts_search.core.events import Event, MaskFound, NewBest, TrialFinished
from lotts_search.core.journal import Journal
from lotts_search.core.kept import Kept
from lotts_search.core.trial_table import TrialRecord, image_hash
from lotts_search.core.virtual_time import Stopped
from lotts_search.errors import LottsError
from lotts_search.work.requests import Bytes, Located, Result, Sampling, State, Usage


@dataclass(frozen=True)
class Labels:
    """Columns that all rows of a search share."""

    run_id: str
    search_id: str
    prompt_id: str
    prompt: str
    model: str
    strategy: str
    strategy_args: str
    search_seed: int
    label: str = ""
    budget_nfe: float | None = None
    budget_images: int | None = None
    budget_flops: float | None = None
    steps: int | None = None


@dataclass
class Book:
    """The records of one search, filled in virtual order.

    Attributes:
        labels: columns shared by all rows.
        ledger: what may be spent and what was.
        on_event: called with each row as it is entered, and with what follows from it.
        trials: the rows.
        states, samplings: state and settings of each candidate, by its key.
        images: images [h, w, 3] by the id of the trial that made them.
        located: masks with their stages, by the id of their trial.
        best: complete candidate with the highest guiding score, the first among equals.
        best_refined: the same among refined candidates only.
    """

    labels: Labels
    ledger: Ledger
    on_event: Callable[[Event], object] | None = None
    trials: list[TrialRecord] = field(default_factory=list)
    states: MutableMapping[str, State] = field(default_factory=dict)
    samplings: dict[str, Sampling] = field(default_factory=dict)
    images: MutableMapping[str, Bytes] = field(default_factory=dict)
    located: dict[str, Located] = field(default_factory=dict)
    best: Candidate | None = None
    best_refined: Candidate | None = None
    _told: Candidate | None = None
    _rows: dict[str, TrialRecord] = field(default_factory=dict)
    _journal: Journal | None = None

    def leave_in(self, journal: Journal) -> None:
        """Leave large images and states in the journal's file, and read them back when they are needed."""

        self.images = Kept(lambda key: journal.part(key, "image"))
        self.states = Kept(lambda key: journal.part(key, "state"))
        self._journal = journal

    def _release(self, key: str, result: Result) -> None:
        if self._journal is None or not large(result) or key not in self._journal:
            return
        for kept, own in ((self.images, result.image), (self.states, result.state)):
            if isinstance(kept, Kept) and own is not None and key in kept:
                kept.release(key)

    def row(self, key: str, parent: str | None, kind: str, *results: Result, **columns: Any) -> None:
        """Enter a finished trial, which took one result or several in a row."""
        for result in results:
            if result.image is not None:
                self.images[key] = result.image
                columns["image"] = result.image_hash or image_hash(result.image)
        usage = self._used(kind, results)
        last = results[-1]
        columns |= vars(usage) | {
            "queue_s": sum(result.queue_s for result in results),
            "started": results[0].started,
            "finished": last.finished,
            "node": last.node,
            "actor": last.actor,
            "attempts": max(result.attempts for result in results),
            "prompts": last.prompts,
            "error": last.note,
        }
        self._enter(usage, key, parent, kind, columns)
        self._release(key, results[0])

    def broken(
        self, key: str, parent: str | None, kind: str, cost: Cost, error: LottsError, *results: Result, **columns: Any
    ) -> None:
        """Enter a trial that failed, charged as reserved, or one that the end of the search cancelled, not charged.
        ``results`` are those of its finished parts."""
        usage = self._used(kind, results)
        cancelled = isinstance(error, Stopped)
        if not cancelled:
            usage.nfe, usage.flops = cost.nfe, float(cost.flops)
        columns |= vars(usage) | {"status": "cancelled" if cancelled else "failed", "error": str(error)}
        self._enter(usage, key, parent, kind, columns)

    def keep(self, candidate: Candidate, state: State, sampling: Sampling) -> None:
        """Record a candidate and update the best."""
        self.states[candidate.key] = state
        self.samplings[candidate.key] = sampling
        if candidate.complete and candidate.score is not None:
            self._compare(candidate)

    def rank(self, candidate: Candidate) -> None:
        """Enter the score of a complete candidate that was made without one, and update the best."""
        row = self.find(candidate)
        assert row is not None
        row.score = candidate.score
        self._compare(candidate)

    def _compare(self, candidate: Candidate) -> None:
        if self.best is None or score_of(candidate) > score_of(self.best):
            self.best = candidate
        if candidate.refined and (self.best_refined is None or score_of(candidate) > score_of(self.best_refined)):
            self.best_refined = candidate

    def find(self, candidate: Candidate | None) -> TrialRecord | None:
        """Return the row of the trial that made a candidate."""
        return None if candidate is None else self._rows.get(candidate.key)

    def _used(self, kind: str, results: Iterable[Result]) -> Usage:
        """Return the usage of a trial's results, with FLOPs at the prices of the search."""
        usage = Usage()
        for result in results:
            usage += result.usage
        usage.flops = self.ledger.costs.flops(kind, usage)
        return usage

    def _enter(self, usage: Usage, key: str, parent: str | None, kind: str, columns: dict[str, Any]) -> None:
        self.ledger += usage
        row = TrialRecord(
            **vars(self.labels),
            **columns,
            trial_id=key,
            parent_id=parent,
            kind=kind,
            nfe_cum=self.ledger.nfe,
            best_so_far=self.best.score if self.best is not None else None,
        )
        self.trials.append(row)
        self._rows.setdefault(key, row)
        if self.on_event is not None:
            self._tell(self.on_event, row)

    def _tell(self, on_event: Callable[[Event], object], row: TrialRecord) -> None:
        spent = self.ledger.spent
        on_event(TrialFinished(row, self.images.get(row.trial_id), spent))
        if (located := self.located.get(row.trial_id)) is not None:
            on_event(MaskFound(row.trial_id, row.parent_id, located))
        best = self.best
        if best is not None and best is not self._told:
            self._told = best
            on_event(NewBest(best.key, score_of(best), self.images[best.key], spent))
