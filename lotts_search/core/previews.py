"""A first look at a search before its first image is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from lotts_search.core.events import Event, Preview
from lotts_search.errors import Failure
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Predict, Result, Segment, Usage, Work

AFTER = 5
"""The first trajectory is looked at after T/5 steps, rounded up."""


class Previewing:
    """Passes work to a pool and shows the first x0 prediction that a search decodes.

    Where the strategy itself looks at none, the first trajectory from pure noise runs in two parts, which changes no bit of
    it, and the prediction of the last step before the cut is decoded meanwhile. That costs one decoding and no NFE; the trial
    is charged with it.

    Args:
        pool: does the work; it has another owner.
        on_event: called, in the event loop's thread, with the :class:`~lotts_search.core.events.Preview`.
    """

    def __init__(self, pool: Pool, on_event: Callable[[Event], object]):
        self.info, self.verifiers, self.rewriters = pool.info, pool.verifiers, pool.rewriters
        self._pool, self._on_event = pool, on_event
        self._loop = asyncio.get_running_loop()
        self._shown = False

    def submit(self, work: Work) -> Future[Result]:
        """Submit work to the pool."""
        if self._shown:
            return self._pool.submit(work)
        if isinstance(work, Predict):
            self._shown = True
            return self._later(self._look(work, self._pool.submit(work)))
        if isinstance(work, Segment) and work.noise is not None and work.stop == work.sampling.steps > 1:
            self._shown = True
            first = self._pool.submit(replace(work, stop=-(-work.stop // AFTER)))
            return self._later(self._in_two(work, first))
        return self._pool.submit(work)

    def close(self) -> None:
        """Do nothing: the pool has another owner."""

    def _later(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _in_two(self, work: Segment, first: Future[Result]) -> Result:
        part = await asyncio.wrap_future(first)
        assert part.state is not None
        rest = asyncio.wrap_future(self._pool.submit(replace(work, noise=None, state=part.state)))
        look = Predict(replace(part.state, predicted=part.state.previous), work.sampling)
        try:
            looked = (await self._look(look, self._pool.submit(look))).usage
        except Failure:  # it is not part of the search
            looked = Usage()
        result = await rest
        usage = Usage()
        for one in (part.usage, looked, result.usage):
            usage += one
        waited, attempts = part.queue_s + result.queue_s, max(part.attempts, result.attempts)
        return replace(result, usage=usage, queue_s=waited, started=part.started, attempts=attempts)

    async def _look(self, work: Predict, submitted: Future[Result]) -> Result:
        result = await asyncio.wrap_future(submitted)
        if result.image is not None:
            self._on_event(Preview(result.image, work.state.step, work.state.steps))
        return result
