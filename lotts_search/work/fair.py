"""One pool for all searches: each gets an equal share of it, however much work it has.

A pool runs what it is given in order, so a search of a thousand images holds up all later ones. Work waits here instead, apart
for every search, and enters the pool only as far as that has room. The next turn is that of the search that was served least
(start-time fair queueing: Goyal, Vin and Cheng 1996), where the service of a piece of work is its network rows times its steps. In a turn
a search gets a whole batch: served one piece at a time, all would advance in step, wait for their scores together, and leave
batches unfilled meanwhile. A search that is cancelled loses its place at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Self

from lotts_search.errors import LottsError
from lotts_search.work.batch_sizes import ROWS
from lotts_search.work.cancelling import when_cancelled
from lotts_search.work.pool import Checking, Pool
from lotts_search.work.requests import Check, Judge, Predict, Result, Rewrite, Segment, Work


def room(generators: int = 1, batch: int = ROWS) -> int:
    """Return the rows that keep generators busy: full batches, and half as much in waiting for them."""
    return generators * (batch + batch // 2)


@dataclass(eq=False)
class _Item:
    work: Work
    rows: int
    future: Future[Result] = field(default_factory=Future)
    inner: Future[Result] | None = None


@dataclass(eq=False)
class _Flow:
    """What one search has waiting for one kind of worker; previews and localizations go before segments, since searches wait
    for them.

    Attributes:
        tag: service up to and including what was started.
    """

    tag: float = 0.0
    soon: deque[_Item] = field(default_factory=deque)
    later: deque[_Item] = field(default_factory=deque)

    def pop(self) -> _Item | None:
        while queue := self.soon or self.later:
            item = queue.popleft()
            if not item.future.cancelled():
                return item
        return None


class _Lane:
    """The work for one kind of worker.

    Args:
        submit: passes work to the pool.
        room: rows that the pool may have at once.
        turn: rows that a search gets before it is the next one's turn.
    """

    def __init__(self, submit: Callable[[Work], Future[Result]], room: int, turn: int):
        self._submit, self._room, self._turn = submit, room, turn
        self._lock = threading.Lock()
        self._flows: dict[Share, _Flow] = {}
        self._clock = 0.0
        self._filling: set[int] = set()  # threads
        self._current: _Flow | None = None
        self._given = 0  # rows, in its turn
        self.used = 0

    @property
    def waiting(self) -> int:
        """Return how many pieces of work wait for room."""
        with self._lock:
            items = [item for flow in self._flows.values() for queue in (flow.soon, flow.later) for item in queue]
        return sum(not item.future.cancelled() for item in items)

    def add(self, share: Share, work: Work) -> Future[Result]:
        item = _Item(work, rows_of(work))
        with self._lock:
            flow = self._flows.setdefault(share, _Flow())
            if not (flow.soon or flow.later):
                flow.tag = max(flow.tag, self._clock)
            (flow.later if isinstance(work, Segment) else flow.soon).append(item)
        when_cancelled(item.future, item, self._cancelled)
        self._fill()
        return item.future

    def leave(self, share: Share) -> None:
        """Forget a search that has ended."""
        with self._lock:
            self._flows.pop(share, None)

    def _fill(self) -> None:
        """Start work while there is room."""
        thread = threading.get_ident()
        if thread in self._filling:  # work was done as soon as it was started: the loop below goes on
            return
        self._filling.add(thread)
        try:
            while (item := self._next()) is not None:
                self._start(item)
        finally:
            self._filling.discard(thread)

    def _start(self, item: _Item) -> None:
        try:
            inner = self._submit(item.work)
        except LottsError as error:
            inner = Future()
            inner.set_exception(error)
        item.inner = inner
        if item.future.cancelled():  # meanwhile
            inner.cancel()
        inner.add_done_callback(lambda done: self._done(item, done))

    def _next(self) -> _Item | None:
        with self._lock:
            flows = [flow for flow in self._flows.values() if flow.soon or flow.later]
            if self._given >= self._turn:
                self._current, self._given = None, 0
            for flow in sorted(flows, key=lambda flow: (flow is not self._current, flow.tag)):
                head = (flow.soon or flow.later)[0]
                if self.used and self.used + head.rows > self._room:
                    return None
                if (item := flow.pop()) is not None:
                    self._given = item.rows + (self._given if flow is self._current else 0)
                    self._current = flow
                    self.used += item.rows
                    self._clock = max(self._clock, flow.tag)
                    flow.tag += item.rows * max(1.0, item.work.nfe)
                    return item
            return None

    def _done(self, item: _Item, inner: Future[Result]) -> None:
        with self._lock:
            self.used -= item.rows
        item.inner = None  # which holds the item, and its result
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            if inner.cancelled():
                item.future.cancel()
            elif (error := inner.exception()) is not None:
                item.future.set_exception(error)
            else:
                item.future.set_result(inner.result())
        self._fill()

    def _cancelled(self, item: _Item) -> None:
        if item.inner is not None:
            item.inner.cancel()


class FairPool:
    """A pool that many searches share fairly. Each gets a :meth:`share` as its pool, in a ``with`` block or closed after it::

        async def one(prompt):
            with fair.share() as share:
                return await asearch(prompt, pool=share)

    The results are those of the pool itself. Searches that are to be finished one after the other, such as those of a study, are
    faster on the pool itself.

    Args:
        pool: does the work; it has another owner.
        rows: network rows, and images of a verifier, that it may have at once: what its workers compute in one batch, and as
            much more as keeps them busy until the next piece arrives, see :func:`room`; by default of one generator.
        turn: rows that a search gets at a time, those of a batch.
    """

    def __init__(self, pool: Pool, rows: int = room(), turn: int = ROWS):
        self.pool = pool
        self._generate = _Lane(pool.submit, rows, turn)
        self._judge = {name: _Lane(pool.submit, rows, turn) for name in pool.verifiers}
        self._rewrite = {name: _Lane(pool.submit, rows, turn) for name in pool.rewriters}
        self.lanes = [self._generate, *self._judge.values(), *self._rewrite.values()]

    @property
    def waiting(self) -> int:
        """Return how many pieces of work wait here."""
        return sum(lane.waiting for lane in self.lanes)

    @property
    def running(self) -> int:
        """Return how many rows the pool has."""
        return sum(lane.used for lane in self.lanes)

    def lane(self, work: Work) -> _Lane | None:
        """Return where work of this kind waits; None for a verifier or rewriter that the pool does not have."""
        if isinstance(work, Judge):
            return self._judge.get(work.verifier)
        return self._rewrite.get(work.rewriter) if isinstance(work, Rewrite) else self._generate

    def share(self) -> Share:
        """Return the pool of one search."""
        return Share(self)


class Share(Checking):
    """The part of a :class:`FairPool` that one search gets; :meth:`close` it after the search."""

    def __init__(self, fair: FairPool):
        self._fair = fair
        self.info, self.verifiers, self.rewriters = fair.pool.info, fair.pool.verifiers, fair.pool.rewriters

    def submit(self, work: Work) -> Future[Result]:
        """Queue a piece of work; never blocks."""
        lane = self._fair.lane(work)
        return self._fair.pool.submit(work) if lane is None else lane.add(self, work)  # the pool refuses it by name

    def check(self, work: Check) -> list[Future[Result]]:
        """Let the pool check a search, where it can; that does not wait in a queue."""
        return self._fair.pool.check(work) if isinstance(self._fair.pool, Checking) else []

    def close(self) -> None:
        """Give the share back."""
        for lane in self._fair.lanes:
            lane.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rows_of(work: Work) -> int:
    """Return how many rows of a batch a piece of work takes while it runs."""
    return 2 if isinstance(work, Segment | Predict) and work.sampling.guided else 1
