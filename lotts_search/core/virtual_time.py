"""Virtual time: the order in which results reach a strategy, independent of the order in which they really finish.

A strategy is a coroutine that awaits only :class:`Trial` objects and :func:`gather_completed`. In the order of the calls,
each trial gets a virtual start and a virtual duration (its NFE) on a fixed number of virtual workers. The branches of the
strategy resume in the order of virtual finish times, ties in the order of the calls. The real work starts at the call and
runs under asyncio, so that many searches share one pool.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from lotts_search.errors import BudgetExhausted, Failure, LottsError
from lotts_search.work.requests import Result

T = TypeVar("T")
Settle: TypeAlias = Callable[[list[Result], LottsError | None], T]
"""Turns the results of the real work, and the error that ended it, into the value of a trial, or raises that error."""
Ending: TypeAlias = Literal["done", "target", "seconds"]

ENDS_BRANCH = (BudgetExhausted, Failure)
"""Errors that end one branch of a search and not the others."""


class Stopped(LottsError):
    """The search ended before this trial was finished."""


class Trial(Generic[T]):
    """A call of the search handle, under way. ``await`` it for its value; several branches may do so.

    Attributes:
        number, finish: place in the order of the calls, and virtual finish time; they order trials.
        real: the real work.
        results: results of the real work so far.
        waiters: branches that await it.

    Raises when awaited:
        BudgetExhausted: it was refused and never ran.
        Failure: it failed.
    """

    def __init__(self, number: int, finish: float, real: asyncio.Task[None], results: list[Result], settle: Settle[T]):
        self.number, self.finish = number, finish
        self.real, self.results = real, results
        self.waiters: list[_Branch] = []
        self._settle = settle
        self._done = False
        self._value: T | None = None
        self._error: Exception | None = None

    @classmethod
    def settled(cls, value: T | None = None, error: Exception | None = None) -> Trial[T]:
        """Make a trial that needs no work: its value or its error is known."""
        trial = cls.__new__(cls)
        trial._done = True
        trial._value = value
        trial._error = error
        return trial

    def __await__(self) -> Generator[Any, None, T]:
        if not self._done:
            yield self
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    @property
    def refused(self) -> bool:
        """Whether the budget did not cover it."""
        return isinstance(self._error, BudgetExhausted)

    def __lt__(self, other: Trial[Any]) -> bool:
        return (self.finish, self.number) < (other.finish, other.number)

    def settle(self, stopped: Stopped | None = None) -> None:
        """Deliver the outcome, in virtual order. With ``stopped``, the work was not finished."""
        try:
            self._value = self._settle(self.results, stopped or _error(self.real))
        except LottsError as raised:
            self._error = raised
        self._done = True
        self.results = []  # whoever holds the trial need not hold its arrays


def _error(task: asyncio.Task[None]) -> LottsError | None:
    if task.cancelled():
        return Failure("the pool gave this work up")
    error = task.exception()
    if error is None or isinstance(error, LottsError):
        return error
    failure = Failure(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


async def gather_completed(*branches: Awaitable[T]) -> list[T]:
    """Run branches of a strategy concurrently, wait for all of them, and drop those that failed.

    A branch is an awaitable: a call of the search, or a coroutine that makes such calls. A branch that awaits a refused
    or failed trial (:class:`~lotts_search.errors.BudgetExhausted`, :class:`~lotts_search.errors.Failure`) ends without a
    result; the others continue. So the list may be shorter than the arguments, or empty. Any other error ends the other
    branches and is raised here.

    Returns:
        The results of the completed branches, in the order of the arguments.
    """
    return await _Gather(branches)


async def repeat(branch: Callable[[int], Awaitable[object]], count: int | None, width: int = 8) -> None:
    """Run ``branch(0)``, ``branch(1)``, …, ``branch(count - 1)`` concurrently, and drop those that failed.

    Args:
        count: number of branches; None = without end, ``width`` at a time, for budgets that limit only time.
    """
    if count is not None:
        await gather_completed(*(branch(i) for i in range(count)))
        return
    numbers = itertools.count()

    async def worker() -> None:
        while True:
            await branch(next(numbers))

    await gather_completed(*(worker() for _ in range(width)))


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _Branch:
    """One running coroutine of a strategy."""

    def __init__(self, awaitable: Awaitable[Any], group: _Gather[Any] | None = None):
        self.coroutine: Coroutine[Any, None, Any] = awaitable if isinstance(awaitable, Coroutine) else _await(awaitable)
        self.group = group
        self.value: Any = None
        self.error: Exception | None = None

    @property
    def fatal(self) -> bool:
        return self.error is not None and not isinstance(self.error, ENDS_BRANCH)


class _Gather(Generic[T]):
    """The request of a branch to run others and to resume after them."""

    def __init__(self, awaitables: tuple[Awaitable[T], ...]):
        self.branches = [_Branch(awaitable, self) for awaitable in awaitables]
        self.running = len(self.branches)
        self.waiter: _Branch | None = None

    def __await__(self) -> Generator[Any, None, list[T]]:
        if self.branches:
            yield self
        for branch in self.branches:
            if branch.error is not None and branch.fatal:
                raise branch.error
        return [branch.value for branch in self.branches if branch.error is None]


class Scheduler:
    """Runs one strategy in virtual time.

    Args:
        workers: number of virtual workers, 1 or more. It is part of what identifies a search: another number may change
            the order of events and so, for adaptive strategies, the trials.
    """

    def __init__(self, workers: int = 8):
        self.now = 0.0
        self._free = [0.0] * workers
        self._events: list[Trial[Any]] = []
        self._ready: deque[_Branch] = deque()
        self._live: set[_Branch] = set()
        self._numbers = itertools.count()

    def call(self, duration: float, real: asyncio.Task[None], results: list[Result], settle: Settle[T]) -> Trial[T]:
        """Enter a trial whose real work has started. A duration of 0 takes no worker."""
        finish = self.now
        if duration > 0:
            start = max(self.now, heapq.heappop(self._free))
            finish = start + duration
            heapq.heappush(self._free, finish)
        trial = Trial(next(self._numbers), finish, real, results, settle)
        heapq.heappush(self._events, trial)
        return trial

    async def run(
        self,
        main: Coroutine[Any, None, None],
        *,
        seconds: float | None = None,
        enough: Callable[[], bool] = lambda: True,
        reached: Callable[[], bool] = lambda: False,
    ) -> tuple[Ending, Exception | None]:
        """Run a strategy until it and all of its trials are finished.

        Args:
            main: the strategy's coroutine.
            seconds: real time after which to stop, once ``enough()``.
            reached: called after each trial; True stops at once.

        Returns:
            Why it ended, and the refusal or failure that ended ``main`` itself, if there was one.

        Raises:
            Exception: any other error of the strategy.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        root = _Branch(main)
        self._start(root)
        try:
            while True:
                self._step_all()
                if root.error is not None and root.fatal:
                    raise root.error
                if not self._events:
                    return "done", root.error
                if not await self._wait(self._events[0].real, deadline, enough):
                    return "seconds", None
                trial = heapq.heappop(self._events)
                self.now = trial.finish
                trial.settle()
                self._ready.extend(trial.waiters)
                if reached():
                    return "target", None
        finally:
            for branch in list(self._live):
                branch.coroutine.close()
            self._live.clear()

    async def abandon(self, reason: str, keep: bool) -> None:
        """Give up the trials that are not delivered yet. With ``keep``, those whose real work is finished still count."""
        trials, self._events = sorted(self._events), []
        unfinished = [trial.real for trial in trials if not (keep and trial.real.done())]
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
        for trial in trials:
            if keep and not trial.real.cancelled():
                trial.settle()
                continue
            if not keep:
                trial.results.clear()
            trial.settle(Stopped(reason))

    async def _wait(self, task: asyncio.Task[None], deadline: float | None, enough: Callable[[], bool]) -> bool:
        if deadline is None or not enough():
            await asyncio.wait({task})
        if deadline is None:
            return True
        left = deadline - time.monotonic()
        if left > 0:
            await asyncio.wait({task}, timeout=left)
        return task.done() and (time.monotonic() < deadline or not enough())

    def _start(self, branch: _Branch) -> None:
        self._live.add(branch)
        self._ready.append(branch)

    def _step_all(self) -> None:
        while self._ready:
            branch = self._ready.popleft()
            if branch in self._live:
                self._step(branch)

    def _step(self, branch: _Branch) -> None:
        try:
            wanted = branch.coroutine.send(None)
        except StopIteration as stop:
            branch.value = stop.value
            self._end(branch)
        except Exception as error:
            branch.error = error
            self._end(branch)
        else:
            if isinstance(wanted, Trial):
                wanted.waiters.append(branch)
            elif isinstance(wanted, _Gather):
                wanted.waiter = branch
                for child in wanted.branches:
                    self._start(child)
            else:
                branch.coroutine.close()
                branch.error = TypeError(f"a strategy may await only its search and gather_completed, not {wanted!r}")
                self._end(branch)

    def _end(self, branch: _Branch) -> None:
        self._live.discard(branch)
        group = branch.group
        if group is None or group.waiter is None:
            return
        group.running -= 1
        if branch.fatal:
            self._close(group)
        elif group.running:
            return
        self._ready.append(group.waiter)
        group.waiter = None

    def _close(self, group: _Gather[Any]) -> None:
        """End the branches of a group and all branches below them, without waiting for them."""
        members = {id(other) for other in group.branches}
        for branch in list(self._live):
            above: _Branch | None = branch
            while above is not None and id(above) not in members:
                above = above.group.waiter if above.group is not None else None
            if above is not None:
                branch.coroutine.close()
                self._live.discard(branch)
