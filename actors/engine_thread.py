"""Run an engine in a background thread, so that many tasks are in flight and new ones join at the next tick. No Ray
here: an actor is a thin wrapper around an :class:`EngineThread`."""

from __future__ import annotations

import os
import platform
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from lotts_search.errors import Failure, LottsError
from lotts_search.work.cancelling import when_cancelled
from lotts_search.work.requests import Result


class Tickable(Protocol):
    """What the thread drives: :class:`lotts_search.engine.engine.Engine`, a score batcher, or a plug-in of the same
    shape."""

    def submit(self, work: Any) -> Future[Result]:
        """Accept a piece of work; its future fails with a :class:`lotts_search.errors.LottsError`."""

    def tick(self) -> bool:
        """Do one batched operation; return False if there was nothing to do."""


@dataclass(frozen=True)
class Ready:
    """Sent by a worker once loading is done.

    Attributes:
        info: the factory's description of what it built, e.g. a :class:`lotts_search.work.model.ModelInfo`.
        name: name of the worker.
        node: host name of its machine.
        pid: id of its process.
    """

    info: Any
    name: str
    node: str
    pid: int


Factory = Callable[[], tuple[Tickable, Any]]
"""Builds an engine and describes it."""


class EngineBroken(Exception):
    """The engine raised outside of any task (device lost, out of memory) and cannot be trusted with more work."""


class EngineThread:
    """Build an engine and drive it, both in one background thread: torch's number of threads and current device belong
    to the thread that sets them.

    Args:
        name: name of the worker, recorded in ``Result.actor``.
        factory: builds the engine.

    Attributes:
        ready: done once the engine is built; fails with a :class:`lotts_search.errors.LottsError`.
        ticks: operations of the engine so far.
    """

    def __init__(self, name: str, factory: Factory) -> None:
        self.name = name
        self.ready: Future[Ready] = Future()
        self.ticks = 0
        self._inbox: queue.SimpleQueue[tuple[Any, Future[Result]] | None] = queue.SimpleQueue()
        self._running: set[Future[Result]] = set()
        self._broken: str | None = None
        threading.Thread(target=self._loop, args=(factory,), name=f"engine {name}", daemon=True).start()

    def submit(self, work: Any) -> Future[Result]:
        """Queue a piece of work. Its future fails with a :class:`lotts_search.errors.LottsError` if the work itself
        failed, and with :class:`EngineBroken` if the engine did. Cancelling it stops the work at the engine's next tick."""
        future: Future[Result] = Future()
        self._inbox.put((work, future))
        return future

    def close(self) -> None:
        """End the thread after the current tick."""
        self._inbox.put(None)

    def _loop(self, factory: Factory) -> None:
        try:
            engine, info = factory()
        except Exception as error:
            self.ready.set_exception(_as_lotts_error(error))
            return
        self.ready.set_result(Ready(info, self.name, platform.node(), os.getpid()))
        busy = False
        while self._admit(engine, busy):
            try:
                busy = self._broken is None and engine.tick()
                self.ticks += 1
            except Exception as error:
                self._break(error)
                busy = False

    def _admit(self, engine: Tickable, busy: bool) -> bool:
        """Hand all queued work to the engine, and wait for some if the engine is idle. Return False on close."""
        with suppress(queue.Empty):
            while True:
                item = self._inbox.get(block=not busy)
                busy = True
                if item is None:
                    return False
                self._begin(engine, *item)
        return True

    def _begin(self, engine: Tickable, work: Any, future: Future[Result]) -> None:
        if future.cancelled():
            return
        if self._broken is not None:
            _settle(future, EngineBroken(self._broken))
            return
        self._running.add(future)
        submitted = time.time()
        try:
            answer = engine.submit(work)
        except Exception as error:
            self._running.discard(future)
            _settle(future, _as_lotts_error(error))
            return
        answer.add_done_callback(lambda done: self._settle(done, future, submitted))
        when_cancelled(future, answer, Future.cancel)

    def _settle(self, done: Future[Result], future: Future[Result], submitted: float) -> None:
        if future not in self._running:  # failed already when the engine broke
            return
        if done.cancelled():
            self._running.discard(future)
            return
        error = done.exception()
        if error is not None and _lost_device(error):
            self._break(error.__cause__ or error)
            return
        self._running.discard(future)
        if error is not None:
            _settle(future, _as_lotts_error(error))
            return
        result = done.result()
        result.actor, result.node = self.name, platform.node()
        result.started = result.started or submitted
        result.finished = result.finished or time.time()
        _settle(future, result)

    def _break(self, error: BaseException) -> None:
        self._broken = f"{type(error).__name__}: {error}"
        lost, self._running = self._running, set()
        for future in lost:
            _settle(future, EngineBroken(self._broken))


def _settle(future: Future[Result], answer: Result | Exception) -> None:
    """Answer a piece of work, unless it was cancelled meanwhile."""
    with suppress(InvalidStateError):
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _lost_device(error: BaseException) -> bool:
    """Return whether an error of the device caused this one (torch's ``AcceleratorError``, e.g. an illegal access).
    Such an error is permanent: all further work of this process would fail too."""
    return any(kind.__name__ == "AcceleratorError" for kind in type(error.__cause__).__mro__)


def _as_lotts_error(error: BaseException) -> LottsError:
    return error if isinstance(error, LottsError) else Failure(f"{type(error).__name__}: {error}")
