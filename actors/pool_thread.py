"""The one thread of a pool's worker groups: each reply of Ray and each new task passes through its inbox. No Ray here."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from lotts_search.actors.crew import PLACE_S
from lotts_search.actors.worker_group import WorkerGroup

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""Seconds between checks of the worker groups' timeouts."""


class PoolThread:
    """Runs calls one after the other, and checks timeouts between them.

    Args:
        broken: called with the reason after an error of the pool itself, before the pending work fails.
    """

    def __init__(self, broken: Callable[[str], None]) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._broken = broken
        self._groups: Sequence[WorkerGroup] = ()
        self._shared = False
        self._gave_way = 0.0
        self._thread = threading.Thread(target=self._run, name="ray pool", daemon=True)

    def post(self, call: Callable[[], None]) -> None:
        """Run a call in the thread; never blocks."""
        self._inbox.put(call)

    def open(self, groups: Sequence[WorkerGroup], shared: bool) -> None:
        """Start the thread and the workers.

        Args:
            groups: the generators, then the others, which are started first, so that generators leave a place to them.
            shared: there may not be a place for all: a group without any takes one of the generators'.
        """
        self._groups, self._shared = groups, shared
        self._thread.start()
        for group in reversed(groups):
            self.post(group.open)

    def end(self) -> None:
        """Close the groups after the calls that were posted."""
        self._inbox.put(None)

    def join(self) -> None:
        """Wait for the end, unless in the thread itself."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        reason = "the pool was closed before this work was done"
        checked = time.monotonic()
        try:
            while (call := self._next()) is not None:
                call()
                if time.monotonic() - checked > CHECK_S:
                    checked = time.monotonic()
                    self._check()
        except Exception as error:  # fail pending futures instead of hanging on an internal error
            log.exception("internal error of the pool")
            reason = f"internal error of the pool: {type(error).__name__}: {error}"
            self._broken(reason)
        for group in self._groups:
            group.close(reason)

    def _check(self) -> None:
        for group in self._groups:
            group.check_timeouts()
        now = time.monotonic()
        if self._shared and now - self._gave_way > PLACE_S and any(g.crew.starved() for g in self._groups[1:]):
            self._gave_way = now
            self._groups[0].give_way()

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._inbox.get(timeout=CHECK_S)
        except queue.Empty:
            return _nothing


def _nothing() -> None:
    """Do nothing; returned on a timeout."""
