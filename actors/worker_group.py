"""Distribute tasks over workers of one kind, and replace workers that die. No Ray here.

A group is a plain state machine in one thread; answers and deaths reach that thread through ``post``. Tasks are
idempotent, so a lost one is retried. A task that kills its worker also loses the tasks beside it; therefore the last
try of a task runs *alone* on a worker, and only the culprit runs out of tries.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from lotts_search.actors.engine_thread import Ready
from lotts_search.errors import Failure, LottsError, PoolClosed
from lotts_search.work.requests import Locate, Predict, Result, ScoreMosaics, Segment, Work

log = logging.getLogger(__name__)

SPARE = 2
"""Tasks queued at a worker beyond its batch, so that a free row of the batch is used at the next tick."""

START_ATTEMPTS = 3
"""Consecutive deaths during start-up after which a group gives up."""


class Died(Exception):
    """The worker is gone for good, with all its tasks."""


class Unavailable(Exception):
    """The worker cannot be reached now and may come back; this task is lost either way."""


class Worker(Protocol):
    """A worker in another process. Its futures fail with :class:`LottsError` (the task itself failed, no retry),
    :class:`Died` or :class:`Unavailable`."""

    name: str

    def start(self) -> Future[Ready]:
        """Return a future that is done when everything is loaded."""

    def run(self, work: Any) -> Future[Result]:
        """Start a piece of work."""

    def ping(self) -> Future[None]:
        """Return a future that is done when the worker has been reached."""

    def kill(self) -> None:
        """End the worker at once."""


@dataclass(frozen=True)
class Limits:
    """Timeouts and number of tries.

    Attributes:
        attempts: tries per task, 1 or more.
        answer_s: seconds without an answer after which a worker counts as hanging and is replaced.
        start_s: seconds that a worker may take to start.
        return_s: seconds that an unavailable worker may take to come back.
    """

    attempts: int = 3
    answer_s: float = 900.0
    start_s: float = 600.0
    return_s: float = 60.0


@dataclass(eq=False)
class _Task:
    work: Work
    future: Future[Result]
    rows: int
    submitted: float
    order: int
    attempts: int = 0
    lost: float = 0.0
    sent: float = 0.0
    answer: Future[Result] | None = None


@dataclass(eq=False)
class _Member:
    worker: Worker
    since: float
    state: Literal["starting", "ready", "unreachable"] = "starting"
    ready: Ready | None = None
    reserved: bool = False
    pinging: bool = False
    tasks: set[_Task] = field(default_factory=set)

    @property
    def load(self) -> tuple[float, int]:
        """Outstanding NFE and tasks, to compare in this order (encoding and scoring take no NFE)."""
        return sum(task.work.nfe for task in self.tasks), len(self.tasks)

    @property
    def rows(self) -> int:
        return sum(task.rows for task in self.tasks)


class WorkerGroup:
    """Workers of one kind.

    Args:
        kind: name of the kind in messages, e.g. ``generator``.
        size: number of workers.
        batch: rows that a worker computes at once. A worker holds at most :data:`SPARE` tasks more than fill its batch;
            the others wait here for the first worker with room.
        spawn: creates the worker with a given number; replacements get new numbers.
        post: schedules a call in the group's thread.
        limits: timeouts and number of tries.
        clock: monotonic time in seconds.

    Attributes:
        ready: done when all workers have started; fails with the first error that a retry cannot fix.
    """

    def __init__(
        self,
        kind: str,
        size: int,
        batch: int,
        spawn: Callable[[int], Worker],
        post: Callable[[Callable[[], None]], None],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind, self.batch, self.limits = kind, batch, limits
        self.ready: Future[Ready] = Future()
        self._spawn, self._post, self._clock = spawn, post, clock
        self._size = size
        self._numbers, self._orders = itertools.count(), itertools.count()
        self._members: list[_Member] = []
        self._waiting: deque[_Task] = deque()
        self._alone: deque[_Task] = deque()
        self._deaths = 0
        self._closed_reason: str | None = None

    def open(self) -> None:
        """Start all workers."""
        for _ in range(self._size):
            self._start_worker()

    def add(self, work: Work, future: Future[Result]) -> None:
        """Queue a piece of work; ``future`` receives its result. Cancelling it stops the work, wherever it is."""
        if self._closed_reason is not None:
            _fail(future, PoolClosed(self._closed_reason))
            return
        task = _Task(work, future, rows(work, self.batch), self._clock(), next(self._orders))
        self._waiting.append(task)
        future.add_done_callback(lambda done: self._post(partial(self._cancel, task)) if done.cancelled() else None)
        self._dispatch()

    def check_timeouts(self) -> None:
        """Check all timeouts; call this about once per second."""
        now = self._clock()
        for member in list(self._members):
            waited = now - member.since
            if member.state == "starting" and waited > self.limits.start_s and not self.ready_workers():
                self._start_failed(member, Failure(f"{member.worker.name} did not start within {waited:.0f} s"))
            elif member.state == "unreachable" and waited > self.limits.return_s:
                self._replace(member, f"unavailable for {waited:.0f} s")
            elif any(now - task.sent > self.limits.answer_s for task in member.tasks):
                self._replace(member, f"no answer within {self.limits.answer_s:g} s")
            elif member.state == "unreachable" and not member.pinging:
                self._ping(member)
        self._dispatch()

    def close(self, reason: str) -> None:
        """End all workers; unfinished tasks fail with ``reason``."""
        if self._closed_reason is None:
            self._closed_reason = reason
        unfinished = [*self._waiting, *self._alone, *(task for member in self._members for task in member.tasks)]
        members, self._members = self._members, []
        self._waiting.clear()
        self._alone.clear()
        for member in members:
            member.tasks.clear()
            member.worker.kill()
        for task in unfinished:
            _fail(task.future, PoolClosed(self._closed_reason))
        if not self.ready.done():
            self.ready.set_exception(Failure(self._closed_reason))

    def ready_workers(self) -> list[Ready]:
        """Return the workers that are ready now."""
        return [member.ready for member in self._members if member.ready is not None and member.state == "ready"]

    # Starting workers

    def _start_worker(self) -> None:
        member = _Member(self._spawn(next(self._numbers)), self._clock())
        self._members.append(member)
        self._when(member.worker.start(), partial(self._started, member))

    def _started(self, member: _Member, answer: Future[Ready]) -> None:
        if member not in self._members:
            return
        error = answer.exception()
        if error is not None:
            self._start_failed(member, error)
            return
        member.ready, member.state = answer.result(), "ready"
        self._deaths = 0
        if not self.ready.done() and all(other.state == "ready" for other in self._members):
            self.ready.set_result(self._members[0].ready or member.ready)
        self._dispatch()

    def _start_failed(self, member: _Member, error: BaseException) -> None:
        self._members.remove(member)
        member.worker.kill()
        self._deaths += 1
        if not isinstance(error, LottsError):
            if self._deaths < START_ATTEMPTS:
                self._start_worker()
                return
            error = Failure(f"{member.worker.name} died during start-up: {error}")
        if not self.ready.done():
            self.ready.set_exception(error)
        if not self._members:
            self.close(f"no {self.kind} is left: {error}")

    # Tasks

    def _dispatch(self) -> None:
        ready = [member for member in self._members if member.state == "ready"]
        if self._alone and ready and not any(member.reserved for member in ready):
            min(ready, key=_load).reserved = True
        for member in ready:
            if member.reserved and not member.tasks:
                if self._alone:
                    self._send(member, self._alone.popleft())
                else:
                    member.reserved = False
        while self._waiting:
            task = self._waiting[0]
            most = self.batch + SPARE * task.rows
            free = [member for member in ready if not member.reserved and member.rows + task.rows <= most]
            if not free:
                return
            self._send(min(free, key=_load), self._waiting.popleft())

    def _send(self, member: _Member, task: _Task) -> None:
        if task.future.cancelled():
            return
        task.attempts += 1
        task.sent = self._clock()
        member.tasks.add(task)
        task.answer = member.worker.run(task.work)
        self._when(task.answer, partial(self._answered, member, task, task.attempts))

    def _cancel(self, task: _Task) -> None:
        """Stop a task that was cancelled and is with a worker; one that waits is skipped when its turn comes."""
        for member in self._members:
            if task in member.tasks and task.answer is not None:
                member.tasks.discard(task)
                task.answer.cancel()
        self._dispatch()

    def _answered(self, member: _Member, task: _Task, attempt: int, answer: Future[Result]) -> None:
        if task not in member.tasks or task.attempts != attempt:  # that try was abandoned
            return
        error = answer.exception()
        if isinstance(error, Unavailable):
            member.tasks.discard(task)
            self._retry([task], f"{member.worker.name} was unavailable: {error}")
            if member.state == "ready":
                member.state, member.since = "unreachable", self._clock()
                self._ping(member)
        elif error is not None and not isinstance(error, LottsError):
            self._replace(member, str(error))
        else:
            member.tasks.discard(task)
            if error is not None:
                _fail(task.future, error)
            else:
                with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                    task.future.set_result(self._account(task, answer.result()))
        self._dispatch()

    def _account(self, task: _Task, result: Result) -> Result:
        """Charge the task once, however many tries it took; lost tries go to ``nfe_wasted``."""
        result.attempts = task.attempts
        result.usage.nfe_wasted += task.lost
        result.queue_s += task.sent - task.submitted
        return result

    # Lost workers

    def _ping(self, member: _Member) -> None:
        member.pinging = True
        self._when(member.worker.ping(), partial(self._pinged, member))

    def _pinged(self, member: _Member, answer: Future[None]) -> None:
        if member not in self._members:
            return
        member.pinging = False
        error = answer.exception()
        if error is None:
            member.state = "ready"
        elif not isinstance(error, Unavailable):
            self._replace(member, str(error))
        self._dispatch()

    def _replace(self, member: _Member, reason: str) -> None:
        self._members.remove(member)
        member.worker.kill()
        lost = sorted(member.tasks, key=lambda task: task.order)
        member.tasks.clear()
        log.warning("%s was lost with %d tasks and is being replaced: %s", member.worker.name, len(lost), reason)
        self._start_worker()
        self._retry(lost, f"{member.worker.name} was lost: {reason}")

    def _retry(self, tasks: list[_Task], reason: str) -> None:
        """Retry lost tasks ahead of newer ones, or fail them. A dead worker cannot report its progress, so a lost try
        counts in full."""
        again: list[_Task] = []
        for task in tasks:
            task.lost += task.work.nfe
            if task.attempts >= self.limits.attempts:
                tries = f"in try {task.attempts} of {self.limits.attempts}"
                _fail(task.future, Failure(f"{_describe(task.work)} failed {tries}: {reason}"))
            elif task.attempts == self.limits.attempts - 1:
                self._alone.append(task)
            else:
                again.append(task)
        self._waiting.extendleft(reversed(again))

    def _when(self, answer: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        answer.add_done_callback(lambda done: self._post(lambda: then(done)))


def rows(work: Work, batch: int) -> int:
    """Return how many rows of a batch of ``batch`` rows a piece of work takes while it runs."""
    if isinstance(work, Segment | Predict):
        return 2 if work.sampling.guided else 1
    if isinstance(work, Locate):
        return min(batch, max(1, work.source.rows()))
    if isinstance(work, ScoreMosaics):
        return min(batch, len(work.choices))
    return 1


def _load(member: _Member) -> tuple[float, int]:
    return member.load


def _fail(future: Future[Result], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
        future.set_exception(error)


def _describe(work: Work) -> str:
    if isinstance(work, Segment):
        return f"a segment of steps {work.start}..{work.stop} ({work.sampling.prompt!r}, {', '.join(work.lineage)})"
    return f"a {type(work).__name__.lower()} task"
