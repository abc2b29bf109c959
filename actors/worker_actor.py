"""The Ray actor classes: an :class:`~lotts_search.actors.engine_thread.EngineThread` with asyncio methods.

They return errors as values and never raise: Ray would wrap an exception and print its traceback, but the driver needs
the original type.
"""

from __future__ import annotations

import asyncio
import pkgutil
from dataclasses import dataclass
from typing import Any

from lotts_search.actors.engine_thread import EngineBroken, EngineThread, Ready
from lotts_search.errors import LottsError
from lotts_search.work.requests import Result

IN_FLIGHT = 10_000
"""Calls that an actor accepts at once; the worker group enforces the real limit, which is far lower."""


@dataclass(frozen=True)
class BrokenReply:
    """Reply of an actor whose engine broke: replace the actor and retry the task elsewhere."""

    reason: str


class WorkerActor:
    """An actor that runs what a factory builds.

    Args:
        name: name of the worker.
        factory: ``module:function``, see :mod:`lotts_search.actors.factories`.
        arguments: passed to the factory.
    """

    def __init__(self, name: str, factory: str, *arguments: Any) -> None:
        self._thread = EngineThread(name, lambda: pkgutil.resolve_name(factory)(*arguments))

    async def start(self) -> Ready | LottsError:
        """Wait until everything is loaded."""
        try:
            return await asyncio.wrap_future(self._thread.ready)
        except LottsError as error:
            return error

    async def run(self, work: Any) -> Result | LottsError | BrokenReply:
        """Do one piece of work; many calls may be in flight."""
        try:
            return await asyncio.wrap_future(self._thread.submit(work))
        except LottsError as error:
            return error
        except EngineBroken as error:
            return BrokenReply(str(error))

    async def ping(self) -> None:
        """Return as soon as the actor can be reached."""


# Ray's dashboard and `ray list actors` show the name of the class.
class GeneratorActor(WorkerActor):
    """Runs a backbone and all trajectories on it."""


class VerifierActor(WorkerActor):
    """Runs a verifier."""


class RewriterActor(WorkerActor):
    """Runs a rewriter."""
