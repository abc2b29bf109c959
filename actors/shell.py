"""The part of a Ray actor that generators and verifiers share: it answers with values, never with exceptions, so
that an error reaches the driver as the type it was raised as (Ray would wrap it and print its traceback)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from lotts_search.actors.host import EngineBroken, Factory, Host, Ready
from lotts_search.errors import LottsError
from lotts_search.work.requests import Result

IN_FLIGHT = 10_000
"""Calls that an actor accepts at once; the pool keeps the real limit, which is far lower."""


@dataclass(frozen=True)
class Broken:
    """Answer of an actor whose engine broke: the actor is to be replaced and the work tried again."""

    reason: str


class Shell:
    """An asyncio actor around a :class:`lotts_search.actors.host.Host`."""

    def __init__(self, name: str, factory: Factory) -> None:
        self._host = Host(name, factory)

    async def start(self) -> Ready | LottsError:
        """Answers once everything is loaded."""
        try:
            return await asyncio.wrap_future(self._host.ready)
        except LottsError as error:
            return error

    async def run(self, work: Any) -> Result | LottsError | Broken:
        """Do one piece of work, beside all others that are in flight."""
        try:
            return await asyncio.wrap_future(self._host.submit(work))
        except LottsError as error:
            return error
        except EngineBroken as error:
            return Broken(str(error))

    async def ping(self) -> None:
        """Answers as soon as the actor can be reached."""
