"""Which workers hang, and how fast they are. No Ray here.

A worker that is quiet is pinged. One whose process does not answer hangs, whatever it does; one that answers and does not move on
hangs in its work, for which a limit follows what such work has taken on this crew.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable

from lotts_search.actors.crew import Limits, Member
from lotts_search.actors.tasks import Task
from lotts_search.work.requests import Judge, Locate, Result

PING_S = 2.0
"""Seconds without a sign of life after which a worker is pinged."""
LATE_S = 2.0
"""Seconds between two checks above which this process was held up. That time is held against no ping: replies may wait."""
PING_TIMES = 10.0
"""Hanging is to leave a ping unanswered for so many times the longest of late: on an overloaded machine all are slow."""
TIMES = 3.0
"""Hanging is to do nothing for so many times the seconds that work of this kind has taken from sending to answer."""
LEAST_S = 300.0
"""Least such limit: a verifier behind an endpoint may take as long as two of its timeouts."""
SMOOTH = 0.1
"""Share of the last answer in the mean time for an NFE."""
LAST = 64
"""Answers of pings, and of work of a kind, that the limits follow."""


class Watch:
    """Measures how long work takes, and finds workers that hang.

    Args:
        limits: timeouts.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._checked = 0.0
        self._took: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=LAST))
        self._pings: deque[float] = deque(maxlen=LAST)
        self._seconds = 0.0

    def finished(self, member: Member, task: Task, result: Result) -> None:
        """Note how fast a worker is: fast ones get more work."""
        seconds = result.finished - result.started
        if not task.work.nfe or seconds <= 0:
            return
        seconds /= task.work.nfe
        member.seconds += (SMOOTH if member.seconds else 1.0) * (seconds - member.seconds)
        self._seconds += (SMOOTH if self._seconds else 1.0) * (seconds - self._seconds)
        member.pace = member.seconds / self._seconds

    def answered(self, member: Member, task: Task, now: float) -> None:
        """Note the answer of a task."""
        member.heard = member.moved = now
        member.proven = True
        self._took[_kind(task)].append(now - task.sent)

    def check(self, members: Iterable[Member], now: float) -> None:
        """Begin a check of all workers."""
        held_up, self._checked = max(0.0, now - self._checked - LATE_S), now
        for member in members:
            if member.asked is not None:
                member.asked += held_up

    def ponged(self, member: Member, ticks: int, now: float) -> None:
        """Note the answer of a ping.

        Args:
            ticks: operations of the worker's engine so far.
        """
        if member.asked is not None:
            self._pings.append(now - member.asked)
        member.asked, member.heard = None, now
        if ticks != member.ticks:
            member.ticks, member.moved = ticks, now

    def limit(self, member: Member) -> float:
        """Return the seconds that a worker may do nothing with the tasks that it has. Its first answer may take longer, as models are
        compiled then."""
        took = [self._took.get(_kind(task), ()) if member.proven else () for task in member.tasks]
        return max(
            (max(LEAST_S, TIMES * max(each)) if each else self._limits.answer_s for each in took), default=LEAST_S
        )

    def hangs(self, member: Member, now: float) -> str:
        """Return why a worker counts as hanging; "" if it does not."""
        patience = max(self._limits.ping_s, PING_TIMES * max(self._pings, default=0.0))
        if member.asked is not None and now - member.asked > patience:
            return f"its process has not answered for {now - member.asked:.0f} s"
        # Only as long as it is known to live: otherwise this process may have slept, too.
        idle = member.heard - member.moved
        if member.tasks and idle > self.limit(member):
            return f"it has done nothing for {idle:.0f} s"
        return ""


def _kind(task: Task) -> Hashable:
    work = task.work
    return type(work), type(work.source) if isinstance(work, Locate) else isinstance(work, Judge) and work.verifier
