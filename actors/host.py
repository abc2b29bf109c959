"""Hosts a ticking engine in a thread of its own, so that many works are in flight and new work joins at the next
tick. No Ray here: an actor is a thin shell around a :class:`Host`."""

from __future__ import annotations

import os
import platform
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from lotts_search.errors import Failure, LottsError
from lotts_search.work.requests import Result


class Ticking(Protocol):
    """What a host drives: :class:`lotts_search.engine.engine.Engine`, a score batcher, or a plug-in of the same shape."""

    def submit(self, work: Any) -> Future[Result]:
        """Take a piece of work; the future fails with a :class:`lotts_search.errors.LottsError`."""

    def tick(self) -> bool:
        """Carry on with one batched operation; False when there was nothing to do."""


@dataclass(frozen=True)
class Ready:
    """What a host tells once it is loaded.

    Attributes:
        info: what the factory said about itself, e.g. a :class:`lotts_search.work.model.ModelInfo`.
        name: of the worker.
        node: host name of its machine.
        pid: of its process.
    """

    info: Any
    name: str
    node: str
    pid: int


Factory = Callable[[], tuple[Ticking, Any]]
"""Builds what is hosted, with what is to be told about it."""


class EngineBroken(Exception):
    """An engine raised outside of any work (device lost, out of memory): it cannot be trusted with more work."""


class Host:
    """Builds something that ticks and drives it, both in one background thread, as torch's number of threads and
    the device belong to the thread that sets them.

    Args:
        name: of the worker; recorded in ``Result.actor``.
        factory: builds what is hosted.
    """

    def __init__(self, name: str, factory: Factory) -> None:
        self.name = name
        self.ready: Future[Ready] = Future()
        self._inbox: queue.SimpleQueue[tuple[Any, Future[Result]] | None] = queue.SimpleQueue()
        self._running: set[Future[Result]] = set()
        self._broken: str | None = None
        threading.Thread(target=self._live, args=(factory,), name=f"host {name}", daemon=True).start()

    def submit(self, work: Any) -> Future[Result]:
        """Ask for a piece of work. The future fails with a :class:`lotts_search.errors.LottsError` when the work
        itself failed, with :class:`EngineBroken` when the engine did."""
        future: Future[Result] = Future()
        self._inbox.put((work, future))
        return future

    def close(self) -> None:
        """End the thread after the tick that is running."""
        self._inbox.put(None)

    def _live(self, factory: Factory) -> None:
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
            except Exception as error:
                self._break(error)
                busy = False

    def _admit(self, engine: Ticking, busy: bool) -> bool:
        """Hand all new work to the engine; waits for some when the engine has nothing to do. False at the end."""
        with suppress(queue.Empty):
            while True:
                item = self._inbox.get(block=not busy)
                busy = True
                if item is None:
                    return False
                self._begin(engine, *item)
        return True

    def _begin(self, engine: Ticking, work: Any, future: Future[Result]) -> None:
        if self._broken is not None:
            future.set_exception(EngineBroken(self._broken))
            return
        self._running.add(future)
        asked = time.time()
        try:
            answer = engine.submit(work)
        except Exception as error:
            self._running.discard(future)
            future.set_exception(_as_lotts_error(error))
            return
        answer.add_done_callback(lambda done: self._settle(done, future, asked))

    def _settle(self, done: Future[Result], future: Future[Result], asked: float) -> None:
        if future not in self._running:  # already given up with the engine
            return
        error = done.exception()
        if error is not None and _lost_device(error):
            self._break(error.__cause__ or error)
            return
        self._running.discard(future)
        if error is not None:
            future.set_exception(_as_lotts_error(error))
            return
        result = done.result()
        result.actor, result.node = self.name, platform.node()
        result.started = result.started or asked
        result.finished = result.finished or time.time()
        future.set_result(result)

    def _break(self, error: BaseException) -> None:
        self._broken = f"{type(error).__name__}: {error}"
        lost, self._running = self._running, set()
        for future in lost:
            future.set_exception(EngineBroken(self._broken))


def _lost_device(error: BaseException) -> bool:
    """Whether a work failed by an error of the device (torch's ``AcceleratorError``, e.g. an illegal access). Such an
    error stays: all further work of this process would fail too."""
    return any(kind.__name__ == "AcceleratorError" for kind in type(error.__cause__).__mro__)


def _as_lotts_error(error: BaseException) -> LottsError:
    return error if isinstance(error, LottsError) else Failure(f"{type(error).__name__}: {error}")
