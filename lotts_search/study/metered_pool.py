"""A pool that measures another one: NFE, how busy the generators are, and whether the pool still works."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future

from lotts_search.errors import PoolClosed
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Checking, Pool
from lotts_search.work.requests import Check, Judge, Predict, Result, Rewrite, Segment, Work

WINDOW_S = 30.0
"""Seconds over which the current rate is measured."""


class Meter(Checking):
    """Measures the pool ``pool``, which it does not own.

    Args:
        generators: number of generators in the pool.

    Attributes:
        nfe, device_s: of all finished generating work.
        waiting, rows: pieces of generating work that are requested and not done, and their network rows.
        pool: the measured pool.
        closed: why the pool accepts no more work; None while it does.
    """

    def __init__(self, pool: Pool, generators: int):
        self.info: ModelInfo = pool.info
        self.verifiers, self.rewriters = pool.verifiers, pool.rewriters
        self.generators = generators
        self.nfe = self.device_s = 0.0
        self.waiting = self.rows = 0
        self.closed: PoolClosed | None = None
        self.pool = pool
        self._lock = threading.Lock()
        self._first = self._last = 0.0
        self._recent: deque[tuple[float, float]] = deque()

    def submit(self, work: Work) -> Future[Result]:
        """Submit work to the pool."""
        generates = not isinstance(work, Judge | Rewrite)
        if generates and not self._first:
            self._first = time.monotonic()
        try:
            future = self.pool.submit(work)
        except PoolClosed as error:
            self.closed = error
            raise
        rows = _rows(work)
        with self._lock:
            self.waiting += generates
            self.rows += rows
        future.add_done_callback(lambda done: self._done(done, generates, rows))
        return future

    def check(self, work: Check) -> list[Future[Result]]:
        """Let the pool check a search, where it can."""
        return self.pool.check(work) if isinstance(self.pool, Checking) else []

    def close(self) -> None:
        """Do nothing: the pool has another owner."""

    @property
    def seconds(self) -> float:
        """Return the seconds from the first generating work submitted to the last finished."""
        return max(0.0, self._last - self._first)

    @property
    def busy(self) -> float | None:
        """Return the share of that time in which the generators computed, 0..1; None before any work."""
        return min(1.0, self.device_s / (self.generators * self.seconds)) if self.seconds > 0 else None

    @property
    def rate(self) -> float:
        """Return the recent throughput in NFE/s."""
        with self._lock:
            now = time.monotonic()
            while self._recent and self._recent[0][0] < now - WINDOW_S:
                self._recent.popleft()
            if not self._recent:
                return 0.0
            since = min(WINDOW_S, now - self._first)
            return sum(nfe for _, nfe in self._recent) / since if since > 0 else 0.0

    def _done(self, future: Future[Result], generates: bool, rows: int) -> None:
        with self._lock:
            self.waiting -= generates
            self.rows -= rows
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, PoolClosed):
            self.closed = error
        if error is not None or not generates:
            return
        usage, now = future.result().usage, time.monotonic()
        with self._lock:
            self.nfe += usage.nfe
            self.device_s += usage.device_s
            self._last = now
            self._recent.append((now, usage.nfe))


def _rows(work: Work) -> int:
    """Return the network rows that a piece of work takes in a batch: those of its steps."""
    return (2 if work.sampling.guided else 1) if isinstance(work, Segment | Predict) else 0
