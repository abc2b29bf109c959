"""The workers of one kind: hiring, waiting for a place, starting, and hiring again. No Ray here."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, Protocol, Self

from lotts_search.actors.engine_thread import Ready
from lotts_search.actors.tasks import Hand
from lotts_search.errors import BadInput, Failure, LottsError
from lotts_search.settings import build
from lotts_search.work.requests import Result

log = logging.getLogger(__name__)

START_ATTEMPTS = 3
"""Consecutive failures to start after which a crew without any ready worker gives up."""
PAUSE_S = 60.0
"""Most seconds between two attempts to start a worker; the first is after one second, and each pause doubles."""
PLACE_S = 30.0
"""Seconds after which a crew without any worker and without a place needs the place of another crew. On a busy machine the
process of a worker that has a place takes seconds to answer."""


class Died(Exception):
    """The worker is gone for good, with all its tasks."""


class Unavailable(Exception):
    """The worker cannot be reached now and may come back; this task is lost either way."""


class Worker(Protocol):
    """A worker in another process. Its futures fail with :class:`LottsError` (the task itself failed, no retry),
    :class:`Died` or :class:`Unavailable`."""

    name: str

    def placed(self) -> Future[Any]:
        """Return a future that is done when there is a place for it and its process runs."""

    def start(self) -> Future[Ready]:
        """Return a future that is done when everything is loaded."""

    def run(self, work: Any) -> Future[Result]:
        """Start a piece of work."""

    def ping(self) -> Future[int]:
        """Return the number of operations that the worker's engine has done so far, as soon as the worker is reached."""

    def kill(self) -> None:
        """End the worker at once."""


@dataclass(frozen=True)
class Limits:
    """Timeouts and number of tries.

    Attributes:
        attempts: deaths of workers that had nothing but one task, after which that task fails; 1 or more.
        ping_s: seconds without an answer to a ping after which the process of a worker counts as hanging and is replaced.
        answer_s: seconds that an operation of a worker may take before it is known how long such work takes; later see
            :class:`~lotts_search.actors.watch.Watch`.
        start_s: seconds that a worker may take to start, and that a crew without any may wait for a place.
        return_s: seconds that an unavailable worker may take to come back, and one that starts to answer a ping.
        together_s: seconds that a pool waits for the other workers once one is ready.
        idle_s: seconds without work after which a worker is given back, except for the last one; 0 = never.

    Raises:
        BadInput: a number is out of range.
    """

    attempts: int = 3
    ping_s: float = 20.0
    answer_s: float = 900.0
    start_s: float = 600.0
    return_s: float = 60.0
    together_s: float = 30.0
    idle_s: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value, least = getattr(self, each.name), 1 if each.name == "attempts" else 0
            if not least <= value < float("inf"):
                raise BadInput(f"the limit {each.name} must be {least} or more, not {value}")

    @classmethod
    def parse(cls, settings: Mapping[str, object]) -> Self:
        """Return limits from texts or numbers by name, such as ``{"answer-s": "3600"}``.

        Raises:
            BadInput: a name is unknown, or a value is wrong.
        """
        return build(cls, {name.replace("-", "_"): value for name, value in settings.items()}, "the limits")


@dataclass(eq=False)
class Member(Hand):
    """A worker of the crew with its tasks.

    Attributes:
        state: ``hired`` it waits for a place, ``starting``, ``ready`` or ``unreachable``; ``since`` when it is so.
        held: kept free for a lost task that finds no other place.
        asked: when a ping was sent that has no answer yet.
        heard, moved: when it last answered anything; when it last did something, or got work while it had none.
        ticks: operations of its engine, as of the last ping.
        proven: it has answered some work.
        seconds: for an NFE, of late; 0 = not known.
    """

    worker: Worker
    since: float
    state: Literal["hired", "starting", "ready", "unreachable"] = "hired"
    ready: Ready | None = None
    held: bool = False
    asked: float | None = None
    heard: float = 0.0
    moved: float = 0.0
    ticks: int = 0
    proven: bool = False
    seconds: float = 0.0


class Crew:
    """The workers of one kind.

    Args:
        kind: name of the kind in messages, e.g. ``generator``.
        size: number of workers.
        spawn: creates the worker with a given number; replacements get new numbers.
        post: schedules a call in the crew's thread.
        limits: timeouts.
        clock: monotonic time in seconds.
        changed: called when a worker is ready.
        over: called with the reason when no worker is left and none can be started.

    Attributes:
        members: the workers.
        ready: done when all workers are ready, or some are and ``limits.together_s`` is over; fails with the first error
            that a retry cannot fix.
    """

    def __init__(
        self,
        kind: str,
        size: int,
        spawn: Callable[[int], Worker],
        post: Callable[[Callable[[], None]], None],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        *,
        changed: Callable[[], None],
        over: Callable[[str], None],
    ) -> None:
        self.kind, self.size, self.limits = kind, size, limits
        self.members: list[Member] = []
        self.ready: Future[Ready] = Future()
        self._spawn, self._post, self._clock = spawn, post, clock
        self._changed, self._over = changed, over
        self._numbers = itertools.count()
        self._due: list[float] = []
        self._given_back = 0
        self._failures = 0
        self._first: float | None = None

    @property
    def working(self) -> list[Member]:
        """Return the workers that have started."""
        return [member for member in self.members if member.ready is not None]

    def __str__(self) -> str:
        """Say how many workers are ready, and what the others wait for."""
        states = [member.state for member in self.members]
        waits = {
            "have no place yet": states.count("hired"),
            "are starting": states.count("starting"),
            "will be tried again": len(self._due),
            "had no work and are given back": self._given_back,
        }
        waiting = [f"{count} {what}" for what, count in waits.items() if count]
        return ", ".join([f"{self.kind}: {len(self.working)} of {self.size} ready", *waiting])

    def hire(self) -> None:
        """Start a worker."""
        member = Member(self._spawn(next(self._numbers)), self._clock())
        self.members.append(member)
        self.when(member.worker.placed(), partial(self._placed, member))
        self.when(member.worker.start(), partial(self._started, member))

    def dismiss(self, member: Member, pause_s: float | None = None) -> None:
        """End a worker, and hire another after a pause; None = no other."""
        self.members.remove(member)
        member.worker.kill()
        if pause_s is not None:
            self._due.append(self._clock() + pause_s)

    def give_back(self, member: Member) -> None:
        """End a worker that is not needed now."""
        self.dismiss(member)
        self._given_back += 1

    def take_back(self, most: int) -> None:
        """Hire workers again that were given back."""
        for _ in range(min(most, self._given_back)):
            self._given_back -= 1
            self.hire()

    def starved(self) -> bool:
        """Return whether it has no worker because there is no place for one."""
        now = self._clock()
        return not self.working and any(m.state == "hired" and now - m.since > PLACE_S for m in self.members)

    def check(self) -> None:
        """Hire whom it is time for, and check how long workers take to start."""
        now = self._clock()
        due, self._due = [at for at in self._due if at <= now], [at for at in self._due if at > now]
        for _ in due:
            self.hire()
        for member in [member for member in self.members if member.ready is None]:
            waited = now - member.since
            if member.asked is not None and now - member.asked > self.limits.return_s:
                self._failed(member, Died(f"its process has not answered for {now - member.asked:.0f} s"))
            elif waited > self.limits.start_s and (member.state == "starting" or not self.working):
                what = "found no place" if member.state == "hired" else "did not start"
                late = f"{what} within {waited:.0f} s"
                self._failed(member, Died(late) if self.working else Failure(f"{member.worker.name} {late}"))
        if self._first is not None and now - self._first > self.limits.together_s:
            self._begin()

    def when(self, answer: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        """Call ``then`` in the crew's thread when ``answer`` is done."""
        answer.add_done_callback(lambda done: self._post(lambda: then(done)))

    def _placed(self, member: Member, answer: Future[Any]) -> None:
        if member.state == "hired" and answer.exception() is None:
            member.state = "starting"
            member.since = member.heard = self._clock()

    def _started(self, member: Member, answer: Future[Ready]) -> None:
        if member not in self.members:
            return
        error = answer.exception()
        if error is not None:
            self._failed(member, error)
            return
        member.ready, member.state, member.asked = answer.result(), "ready", None
        member.since = member.heard = member.moved = self._clock()
        self._failures = 0
        self._first = self._clock() if self._first is None else self._first
        if len(self.working) >= self.size:
            self._begin()
        self._changed()

    def _begin(self) -> None:
        if not self.ready.done() and self.working:
            first = self.working[0].ready
            assert first is not None
            self.ready.set_result(first)

    def _failed(self, member: Member, error: BaseException) -> None:
        """Start a worker again after a pause; give up if none is left and a retry cannot help."""
        name = member.worker.name
        self._failures += 1
        pause = min(PAUSE_S, 2.0 ** (self._failures - 1))
        final = not self.working and (isinstance(error, LottsError) or self._failures >= START_ATTEMPTS)
        self.dismiss(member, None if final else pause)
        if not final:
            log.warning("%s could not be started, next attempt in %g s: %s", name, pause, error)
            return
        if not isinstance(error, LottsError):
            error = Failure(f"{name} died during start-up: {error}")
        if not self.ready.done():
            self.ready.set_exception(error)
        if not self.members:
            self._over(f"no {self.kind} is left: {error}")
