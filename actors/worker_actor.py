"""The Ray actor classes: an :class:`~lotts_search.actors.engine_thread.EngineThread` with asyncio methods.

They return errors as values and never raise: Ray would wrap an exception and print its traceback, but the driver needs
the original type. Notices travel with every reply, because warnings of another process do not reach the driver's user.
"""

from __future__ import annotations

import asyncio
import pkgutil
import queue
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lotts_search.actors.engine_thread import EngineBroken, EngineThread, Ready
from lotts_search.errors import LottsError, Notice
from lotts_search.work.requests import Result

IN_FLIGHT = 10_000
"""Calls that an actor accepts at once; the worker group enforces the real limit, which is far lower."""


@dataclass(frozen=True)
class BrokenReply:
    """Value of a reply of an actor whose engine broke: replace the actor and retry the task elsewhere."""

    reason: str


@dataclass(frozen=True)
class Reply:
    """What an actor returns: the value or error of a call, and the notices of its process since the last reply."""

    value: Ready | Result | LottsError | BrokenReply
    notices: tuple[str, ...]


class WorkerActor:
    """An actor that runs what a factory builds.

    Args:
        name: name of the worker.
        factory: ``module:function``, see :mod:`lotts_search.actors.factories`.
        arguments: passed to the factory.
    """

    def __init__(self, name: str, factory: str, *arguments: Any) -> None:
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._collect_notices()
        self._thread = EngineThread(name, lambda: pkgutil.resolve_name(factory)(*arguments))

    async def start(self) -> Reply:
        """Wait until everything is loaded."""
        return await self._reply(self._thread.ready)

    async def run(self, work: Any) -> Reply:
        """Do one piece of work; many calls may be in flight."""
        return await self._reply(self._thread.submit(work))

    async def ping(self) -> int:
        """Return at once how many operations the engine has done."""
        return self._thread.ticks

    async def _reply(self, answer: Future[Any]) -> Reply:
        value: Ready | Result | LottsError | BrokenReply
        try:
            value = await asyncio.wrap_future(answer)
        except LottsError as error:
            value = error
        except EngineBroken as error:
            value = BrokenReply(str(error))
        return Reply(value, tuple(dict.fromkeys(drained(self._notices))))

    def _collect_notices(self) -> None:
        """Keep the notices of all threads of this process; other warnings are shown as before."""
        show = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, Notice):
                self._notices.put(str(message))
            else:
                show(message, category, *where, **options)

        warnings.showwarning = keep
        warnings.simplefilter("always", Notice)


def drained(notices: queue.SimpleQueue[str]) -> Iterator[str]:
    """Take what a queue holds, and wait for nothing."""
    with suppress(queue.Empty):
        while True:
            yield notices.get_nowait()


# Ray's dashboard and `ray list actors` show the name of the class.
class GeneratorActor(WorkerActor):
    """Runs a backbone and all trajectories on it."""


class VerifierActor(WorkerActor):
    """Runs a verifier."""


class RewriterActor(WorkerActor):
    """Runs a rewriter."""
