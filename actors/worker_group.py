"""Distribute tasks over workers of one kind, and replace workers that die. No Ray here.

A group is a plain state machine in one thread; answers and deaths reach that thread through ``post``. Tasks are
idempotent, so a lost one is retried, see :mod:`lotts_search.actors.tasks`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial

from lotts_search.actors.crew import PAUSE_S, Crew, Limits, Member, Unavailable, Worker
from lotts_search.actors.engine_thread import Ready
from lotts_search.actors.places import Places
from lotts_search.actors.tasks import Task, described, rows
from lotts_search.actors.watch import PING_S, Watch
from lotts_search.errors import Failure, LostWork, LottsError, PoolClosed
from lotts_search.work.cancelling import when_cancelled
from lotts_search.work.requests import Result, Work

log = logging.getLogger(__name__)


class WorkerGroup:
    """Workers of one kind, and the tasks for them.

    Args:
        kind: name of the kind in messages, e.g. ``generator``.
        size: number of workers.
        batch: rows that a worker computes at once. A worker holds few tasks more than fill its batch; the others wait here
            for the first worker with room.
        spawn: creates the worker with a given number; replacements get new numbers.
        post: schedules a call in the group's thread.
        limits: timeouts and number of tries.
        clock: monotonic time in seconds.

    Attributes:
        crew: the workers.
        ready: see :class:`~lotts_search.actors.crew.Crew`.
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
        self.batch, self.limits = batch, limits
        self.crew = Crew(kind, size, spawn, post, limits, clock, changed=self._dispatch, over=self.close)
        self.ready: Future[Ready] = self.crew.ready
        self._post, self._clock, self._watch = post, clock, Watch(limits)
        self._orders = itertools.count()
        self._waiting: deque[Task] = deque()
        self._places = Places(batch)
        self._lost: list[Task] = []
        self._holding = False
        self._closed_reason: str | None = None

    def open(self) -> None:
        """Start all workers."""
        for _ in range(self.crew.size):
            self.crew.hire()

    def add(self, work: Work, future: Future[Result]) -> None:
        """Queue a piece of work; ``future`` receives its result. Cancelling it stops the work, wherever it is."""
        if self._closed_reason is not None:
            _fail(future, PoolClosed(self._closed_reason))
            return
        task = Task(work, future, rows(work, self.batch), self._clock(), next(self._orders))
        self._waiting.append(task)
        when_cancelled(future, task, lambda task: self._post(partial(self._cancel, task)))
        self._place()

    def check_timeouts(self) -> None:
        """Check all timeouts; call this about once per second."""
        now = self._clock()
        self._watch.check(self.crew.members, now)
        self.crew.check()
        for member in list(self.crew.members):
            waited = now - member.since
            if member.state == "unreachable" and waited > self.limits.return_s:
                self._replace(member, f"unavailable for {waited:.0f} s")
            elif member.ready is not None and (reason := self._watch.hangs(member, now)):
                self._replace(member, reason)
            elif member.state == "unreachable" or (member.state != "hired" and now - member.heard >= PING_S):
                self._ping(member)
        self._fit(now)
        self._dispatch()

    def give_way(self) -> None:
        """Leave a place to another group: dismiss the workers that wait for one, or else the least busy of several. They are
        hired again later."""
        hired = [member for member in self.crew.members if member.state == "hired"]
        started = self.crew.working
        for member in hired or ([min(started, key=_load)] if len(started) > 1 else []):
            log.warning("%s is dismissed to make room for another kind of worker", member.worker.name)
            self.crew.dismiss(member, PAUSE_S)
            self._retry(member.lose(died=False), "dismissed")
        self._dispatch()

    def close(self, reason: str) -> None:
        """End all workers; unfinished tasks fail with ``reason``."""
        if self._closed_reason is None:
            self._closed_reason = reason
        unfinished = [*self._waiting, *self._lost]
        self._waiting.clear()
        self._lost.clear()
        for member in list(self.crew.members):
            unfinished += member.lose(died=False)
            self.crew.dismiss(member)
        for task in unfinished:
            _fail(task.future, PoolClosed(self._closed_reason))
        if not self.ready.done():
            self.ready.set_exception(Failure(self._closed_reason))

    def ready_workers(self) -> list[Ready]:
        """Return the workers that are ready now."""
        return [member.ready for member in self._ready() if member.ready is not None]

    def _ready(self) -> list[Member]:
        return [member for member in self.crew.members if member.state == "ready"]

    # Tasks

    def _dispatch(self) -> None:
        """Send what can be sent, whatever has changed."""
        ready = self._ready()
        if self._lost or self._holding:
            self._dispatch_lost(ready)
        self._places.reset(member for member in ready if not member.held)
        self._place()

    def _place(self) -> None:
        """Send waiting tasks, the oldest first, as long as there are places."""
        while self._waiting and (member := self._places.best(self._waiting[0])) is not None:
            self._send(member, self._waiting.popleft())

    def _dispatch_lost(self, ready: Sequence[Member]) -> None:
        """Send lost tasks, the oldest first. For each that finds no place, a worker is held free of newer tasks."""
        self._lost = [task for task in self._lost if not task.future.cancelled()]
        for task in list(self._lost):
            free = [member for member in ready if member.takes(task, self.batch)]
            if free:
                self._lost.remove(task)
                self._send(min(free, key=_load), task)
        self._holding = bool(self._lost)
        best = sorted(ready, key=lambda member: (not member.held, member.load))[: len(self._lost)]
        for member in self.crew.members:
            member.held = member in best

    def _send(self, member: Member, task: Task) -> None:
        if task.future.cancelled():
            return
        task.attempts += 1
        task.sent = self._clock()
        if not member.tasks:
            member.moved = task.sent
        member.tasks.add(task)
        self._places.changed(member)
        task.answer = member.worker.run(task.work)
        self.crew.when(task.answer, partial(self._answered, member, task, task.attempts))

    def _cancel(self, task: Task) -> None:
        """Stop a task that was cancelled and is with a worker; one that waits is skipped when its turn comes."""
        for member in self.crew.members:
            if task in member.tasks and task.answer is not None:
                member.tasks.discard(task)
                task.answer.cancel()
        self._dispatch()

    def _answered(self, member: Member, task: Task, attempt: int, answer: Future[Result]) -> None:
        if task not in member.tasks or task.attempts != attempt:  # that try was abandoned
            return
        error = answer.exception()
        if isinstance(error, Unavailable):
            member.tasks.discard(task)
            task.lost += task.work.nfe
            self._retry([task], f"{member.worker.name} was unavailable: {error}")
            self._unreachable(member)
        elif error is not None and not isinstance(error, LottsError):
            self._replace(member, str(error))
        else:
            member.tasks.discard(task)
            task.answer = None  # which holds the task, and its result
            self._watch.answered(member, task, self._clock())
            if error is not None:
                _fail(task.future, error)
            else:
                self._watch.finished(member, task, answer.result())
                with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                    task.future.set_result(self._account(task, answer.result()))
            if not self._lost and not self._holding and member.state == "ready":  # as nearly always
                self._places.changed(member)
                self._place()
                return
        self._dispatch()

    def _account(self, task: Task, result: Result) -> Result:
        """Charge the task once, however many tries it took; lost tries go to ``nfe_wasted``."""
        result.attempts = task.attempts
        result.usage.nfe_wasted += task.lost
        result.queue_s += task.sent - task.submitted
        return result

    # Workers without work

    def _fit(self, now: float) -> None:
        """Give back the workers that have no work for long, so that an autoscaler can end their nodes, and hire them again when work
        waits."""
        if work := len(self._waiting) + len(self._lost):
            self.crew.take_back(work)
        elif self.limits.idle_s:
            idle = [member for member in self._ready() if not member.tasks and now - member.moved > self.limits.idle_s]
            for member in idle[: len(self.crew.members) - 1]:
                log.info("%s has had no work for %.0f s and is given back", member.worker.name, now - member.moved)
                self.crew.give_back(member)

    # Lost workers

    def _unreachable(self, member: Member) -> None:
        if member.state == "ready":
            member.state, member.since = "unreachable", self._clock()
            self._ping(member)

    def _ping(self, member: Member) -> None:
        if member.asked is not None:
            return
        member.asked = self._clock()
        self.crew.when(member.worker.ping(), partial(self._ponged, member))

    def _ponged(self, member: Member, answer: Future[int]) -> None:
        if member not in self.crew.members:
            return
        error = answer.exception()
        if error is None:
            self._watch.ponged(member, answer.result(), self._clock())
            if member.state == "unreachable":
                member.state = "ready"
        elif isinstance(error, Unavailable):
            member.asked = None
            self._unreachable(member)
        elif member.ready is not None:  # else its start fails, too
            self._replace(member, str(error))
        self._dispatch()

    def _replace(self, member: Member, reason: str) -> None:
        lost = member.lose(died=True)
        log.warning("%s was lost with %d tasks and is being replaced: %s", member.worker.name, len(lost), reason)
        self.crew.dismiss(member)
        self.crew.hire()
        self._retry(lost, f"{member.worker.name} was lost: {reason}")

    def _retry(self, tasks: Sequence[Task], reason: str) -> None:
        """Retry lost tasks ahead of newer ones; fail one at whose sole company too many workers died."""
        for task in tasks:
            if task.deaths >= self.limits.attempts:
                workers = "a worker" if task.deaths == 1 else f"{task.deaths} workers"
                _fail(
                    task.future,
                    LostWork(f"{described(task.work)}: {workers} died that ran nothing else, the last: {reason}"),
                )
            else:
                self._lost.append(task)
        self._lost.sort(key=lambda task: task.order)


def _load(member: Member) -> tuple[float, int]:
    return member.load


def _fail(future: Future[Result], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
        future.set_exception(error)
