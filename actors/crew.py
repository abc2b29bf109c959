"""A crew: workers of one kind, which of them gets which work, and what happens when one dies. No Ray here.

A crew is a plain state machine that lives in one thread: whatever happens elsewhere (an answer, a death) is brought
there through ``post``. Works are idempotent, so a lost one is simply tried again. A work that kills its worker takes
those beside it down too; therefore the last try of a work is made *alone* on a worker, so that only the culprit ever
runs out of tries.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from lotts_search.actors.host import Ready
from lotts_search.errors import Failure, LottsError, PoolClosed
from lotts_search.work.requests import Locate, Predict, Result, Segment, Work

W = TypeVar("W", bound=Work)

log = logging.getLogger(__name__)

SPARE = 2
"""Works queued at a worker beyond its batch, so that a freed place is taken at the very next tick (DESIGN §5)."""

START_ATTEMPTS = 3
"""Deaths in a row while starting after which a crew gives up."""


class Died(Exception):
    """The worker is gone for good, and all its work with it."""


class Unavailable(Exception):
    """The worker cannot be reached now and may come back; this piece of work is lost either way."""


class Worker(Protocol):
    """A worker somewhere else. Its futures fail with :class:`LottsError` (the work's own failure, not tried again),
    :class:`Died` or :class:`Unavailable`."""

    name: str

    def start(self) -> Future[Ready]:
        """Done when everything is loaded."""

    def run(self, work: Any) -> Future[Result]:
        """Do a piece of work."""

    def ping(self) -> Future[None]:
        """Done when the worker can be reached."""

    def kill(self) -> None:
        """End it, whatever it is doing."""


@dataclass(frozen=True)
class Limits:
    """How long a crew waits and how often it tries.

    Attributes:
        attempts: tries of one work, 1 or more.
        answer_s: seconds until an answer is given up and its worker, which must hang, replaced.
        start_s: seconds that a worker may take to start.
        return_s: seconds that an unavailable worker may take to come back.
    """

    attempts: int = 3
    answer_s: float = 900.0
    start_s: float = 600.0
    return_s: float = 60.0


@dataclass(eq=False)
class _Task(Generic[W]):
    work: W
    future: Future[Result]
    rows: int
    asked: float
    order: int
    attempts: int = 0
    lost: float = 0.0
    sent: float = 0.0


@dataclass(eq=False)
class _Member(Generic[W]):
    worker: Worker
    since: float
    state: Literal["starting", "ready", "away"] = "starting"
    ready: Ready | None = None
    reserved: bool = False
    pinging: bool = False
    tasks: set[_Task[W]] = field(default_factory=set)

    @property
    def load(self) -> tuple[float, int]:
        """Outstanding NFE, then outstanding works (encoding and scoring take no NFE)."""
        return sum(task.work.nfe for task in self.tasks), len(self.tasks)

    @property
    def rows(self) -> int:
        return sum(task.rows for task in self.tasks)


class Crew(Generic[W]):
    """Workers of one kind.

    Args:
        kind: what they are called in messages, e.g. ``generator``.
        size: how many.
        batch: rows that one of them computes at once. It is given at most :data:`SPARE` works more than fill them;
            the others wait here, to go where there is room first.
        spawn: makes the worker of a number (counted up, also over replacements).
        post: brings a call into the crew's thread.
        limits: times and tries.
        clock: seconds, monotonic.

    Attributes:
        ready: done when all workers have started; fails with the first clear reason why one cannot.
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
        self._members: list[_Member[W]] = []
        self._waiting: deque[_Task[W]] = deque()
        self._alone: deque[_Task[W]] = deque()
        self._deaths = 0
        self._over: str | None = None

    def open(self) -> None:
        """Start the workers."""
        for _ in range(self._size):
            self._hire()

    def add(self, work: W, future: Future[Result]) -> None:
        """Take a piece of work."""
        if self._over is not None:
            _fail(future, PoolClosed(self._over))
            return
        self._waiting.append(_Task(work, future, rows(work, self.batch), self._clock(), next(self._orders)))
        self._dispatch()

    def tend(self) -> None:
        """Look for what takes too long; to be called every second or so."""
        now = self._clock()
        for member in list(self._members):
            waited = now - member.since
            if member.state == "starting" and waited > self.limits.start_s and not self.present():
                self._start_failed(member, Failure(f"{member.worker.name} did not start within {waited:.0f} s"))
            elif member.state == "away" and waited > self.limits.return_s:
                self._replace(member, f"unavailable for {waited:.0f} s")
            elif any(now - task.sent > self.limits.answer_s for task in member.tasks):
                self._replace(member, f"no answer within {self.limits.answer_s:g} s")
            elif member.state == "away" and not member.pinging:
                self._ping(member)
        self._dispatch()

    def close(self, reason: str) -> None:
        """End all workers; work that is not done fails with ``reason``."""
        if self._over is None:
            self._over = reason
        unfinished = [*self._waiting, *self._alone, *(task for member in self._members for task in member.tasks)]
        members, self._members = self._members, []
        self._waiting.clear()
        self._alone.clear()
        for member in members:
            member.tasks.clear()
            member.worker.kill()
        for task in unfinished:
            _fail(task.future, PoolClosed(self._over))
        if not self.ready.done():
            self.ready.set_exception(Failure(self._over))

    def present(self) -> list[Ready]:
        """The workers that are ready now."""
        return [member.ready for member in self._members if member.ready is not None and member.state == "ready"]

    # Hiring

    def _hire(self) -> None:
        member: _Member[W] = _Member(self._spawn(next(self._numbers)), self._clock())
        self._members.append(member)
        self._when(member.worker.start(), partial(self._started, member))

    def _started(self, member: _Member[W], answer: Future[Ready]) -> None:
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

    def _start_failed(self, member: _Member[W], error: BaseException) -> None:
        self._members.remove(member)
        member.worker.kill()
        self._deaths += 1
        if not isinstance(error, LottsError):
            if self._deaths < START_ATTEMPTS:
                self._hire()
                return
            error = Failure(f"{member.worker.name} dies while it starts: {error}")
        if not self.ready.done():
            self.ready.set_exception(error)
        if not self._members:
            self.close(f"no {self.kind} is left: {error}")

    # Work

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

    def _send(self, member: _Member[W], task: _Task[W]) -> None:
        if task.attempts == 0 and not task.future.set_running_or_notify_cancel():
            return
        task.attempts += 1
        task.sent = self._clock()
        member.tasks.add(task)
        self._when(member.worker.run(task.work), partial(self._answered, member, task, task.attempts))

    def _answered(self, member: _Member[W], task: _Task[W], attempt: int, answer: Future[Result]) -> None:
        if task not in member.tasks or task.attempts != attempt:  # that try was given up
            return
        error = answer.exception()
        if isinstance(error, Unavailable):
            member.tasks.discard(task)
            self._lost([task], f"{member.worker.name} was unavailable: {error}")
            if member.state == "ready":
                member.state, member.since = "away", self._clock()
                self._ping(member)
        elif error is not None and not isinstance(error, LottsError):
            self._replace(member, str(error))
        else:
            member.tasks.discard(task)
            if error is not None:
                task.future.set_exception(error)
            else:
                task.future.set_result(self._account(task, answer.result()))
        self._dispatch()

    def _account(self, task: _Task[W], result: Result) -> Result:
        """Charge the work once, however often it was tried; what was lost goes to ``nfe_wasted``."""
        result.attempts = task.attempts
        result.usage.nfe_wasted += task.lost
        result.queue_s += task.sent - task.asked
        return result

    # Loss

    def _ping(self, member: _Member[W]) -> None:
        member.pinging = True
        self._when(member.worker.ping(), partial(self._pinged, member))

    def _pinged(self, member: _Member[W], answer: Future[None]) -> None:
        if member not in self._members:
            return
        member.pinging = False
        error = answer.exception()
        if error is None:
            member.state = "ready"
        elif not isinstance(error, Unavailable):
            self._replace(member, str(error))
        self._dispatch()

    def _replace(self, member: _Member[W], reason: str) -> None:
        self._members.remove(member)
        member.worker.kill()
        lost = sorted(member.tasks, key=lambda task: task.order)
        member.tasks.clear()
        log.warning("%s was lost with %d works and is replaced: %s", member.worker.name, len(lost), reason)
        self._hire()
        self._lost(lost, f"{member.worker.name} was lost: {reason}")

    def _lost(self, tasks: list[_Task[W]], reason: str) -> None:
        """Queue lost work again, ahead of newer work, or give it up. A dead worker cannot say how far it had come:
        a lost try counts in full."""
        again: list[_Task[W]] = []
        for task in tasks:
            task.lost += task.work.nfe
            if task.attempts >= self.limits.attempts:
                task.future.set_exception(
                    Failure(f"{_describe(task.work)} was given up after {task.attempts} tries: {reason}")
                )
            elif task.attempts == self.limits.attempts - 1:
                self._alone.append(task)
            else:
                again.append(task)
        self._waiting.extendleft(reversed(again))

    def _when(self, answer: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        answer.add_done_callback(lambda done: self._post(lambda: then(done)))


def rows(work: Work, batch: int) -> int:
    """Rows of a batch of ``batch`` rows that a piece of work takes up while it runs."""
    if isinstance(work, Segment | Predict):
        return 2 if work.sampling.guided else 1
    if isinstance(work, Locate):
        return min(batch, max(1, work.source.rows()))
    return 1


def _load(member: _Member[Any]) -> tuple[float, int]:
    return member.load


def _fail(future: Future[Result], error: LottsError) -> None:
    if future.running() or future.set_running_or_notify_cancel():
        future.set_exception(error)


def _describe(work: Work) -> str:
    if isinstance(work, Segment):
        return f"a segment of steps {work.start}..{work.stop} ({work.sampling.prompt!r}, {', '.join(work.lineage)})"
    return f"a {type(work).__name__.lower()} work"
