"""From one trial to the pool and back: its key, its reserved cost, its work and what follows, the journal."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias, TypeVar

from lotts_search.core.budget import Ledger
from lotts_search.core.candidate import trial_key
from lotts_search.core.costs import Cost
from lotts_search.core.events import Event, TrialStarted
from lotts_search.core.journal import Journal
from lotts_search.core.trial_table import image_hash
from lotts_search.core.virtual_time import Scheduler, Settle, Trial
from lotts_search.errors import BudgetExhausted, Failure, LottsError
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bytes, Result, Rewrite, Score, Work

T = TypeVar("T")
LARGE = 1 << 17
"""Bytes of an image or latent from which on it is hashed and recorded in another thread, where it holds up no other search, and is
left in the journal of a study."""
Next: TypeAlias = Callable[[Bytes], Score | Rewrite]
"""Makes the request that follows as soon as there is an image."""


class Dispatch:
    """Starts the trials of one search.

    Args:
        journal: answers what it knows instead of the pool, and records what the pool returns.
        on_event: called with each trial whose cost is reserved.
    """

    def __init__(
        self,
        pool: Pool,
        scheduler: Scheduler,
        ledger: Ledger,
        journal: Journal | None,
        on_event: Callable[[Event], object] | None,
    ):
        self._pool = pool
        self._on_event = on_event
        self._scheduler = scheduler
        self._ledger = ledger
        self._journal = journal
        self._occurrences: Counter[str] = Counter()

    def key(self, parent: str | None, kind: str, arguments: tuple[object, ...]) -> str:
        """Return the id of the next trial with these arguments."""
        first = trial_key(parent or "", kind, arguments, 0)
        occurrence = self._occurrences[first]
        self._occurrences[first] += 1
        return trial_key(parent or "", kind, arguments, occurrence)

    def call(
        self,
        key: str,
        parent: str | None,
        kind: str,
        cost: Cost,
        work: Work,
        settle: Settle[T],
        then: Next | None = None,
    ) -> Trial[T]:
        """Reserve the cost of a trial and start its work; where the budget does not cover it, the trial is refused."""
        try:
            self._ledger.reserve(cost)
        except BudgetExhausted as refusal:
            return Trial.settled(error=refusal)
        if self._on_event is not None:
            self._on_event(TrialStarted(key, parent, kind, cost.nfe))
        results: list[Result] = []
        real = asyncio.get_running_loop().create_task(self._work(key, self._submit(key, work), then, results))
        return self._scheduler.call(cost.nfe, real, results, settle)

    def known(self, result: Result, settle: Settle[T]) -> Trial[T]:
        """Make a trial whose result is known without the pool and the journal; it costs nothing."""
        results: list[Result] = []

        async def enter() -> None:
            results.append(result)

        return self._scheduler.call(0.0, asyncio.get_running_loop().create_task(enter()), results, settle)

    async def _work(self, key: str, first: Future[Result], then: Next | None, results: list[Result]) -> None:
        """Wait for the work and what follows its image, which starts in real time, without waiting for virtual order."""
        results.append(await self._result(key, first))
        if then is not None:
            image = results[0].image
            if image is None:
                raise Failure("the pool sent no image")
            work = then(image)
            name = f"{key} {type(work).__name__.lower()}"
            results.append(await self._result(name, self._submit(name, work)))

    def _submit(self, name: str, work: Work) -> Future[Result]:
        """Start a piece of work, unless the journal knows its outcome."""
        known: Result | LottsError | None = self._journal.find(name) if self._journal is not None else None
        if known is None:
            try:
                return self._pool.submit(work)
            except LottsError as error:
                known = error
        settled: Future[Result] = Future()
        if isinstance(known, Result):
            settled.set_result(known)
        else:
            settled.set_exception(known)
        return settled

    async def _result(self, name: str, submitted: Future[Result]) -> Result:
        """Wait for a piece of work, and record its outcome in the journal."""
        outcome: Result | Failure
        try:
            outcome = await asyncio.wrap_future(submitted)
        except Failure as failure:
            outcome = failure
        if isinstance(outcome, Result) and large(outcome):
            await asyncio.get_running_loop().run_in_executor(None, self._record, name, outcome)
        else:
            self._record(name, outcome)
        if isinstance(outcome, Failure):
            raise outcome
        return outcome

    def _record(self, name: str, outcome: Result | Failure) -> None:
        if isinstance(outcome, Result) and outcome.image is not None and not outcome.image_hash:
            outcome.image_hash = image_hash(outcome.image)
        if self._journal is not None:
            self._journal.add(name, outcome)


def large(result: Result) -> bool:
    """Return whether a result has an image or a latent of :data:`LARGE` bytes or more."""
    arrays = (result.image, None if result.state is None else result.state.latent)
    return any(array is not None and array.nbytes >= LARGE for array in arrays)
