"""Where work runs: one interface for this process (:class:`lotts_search.engine.local_pool.LocalPool`) and for Ray
(:class:`lotts_search.actors.ray_pool.RayPool`)."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Result, Work


class Pool(Protocol):
    """Runs work. ``submit`` never blocks; futures fail with a :class:`lotts_search.errors.LottsError`.

    Work is idempotent: a pool may try it again elsewhere after a failure, and says so in ``Result.attempts``
    and ``Result.usage.nfe_wasted``.
    """

    info: ModelInfo

    def submit(self, work: Work) -> Future[Result]:
        """Request a piece of work."""

    def close(self) -> None:
        """Stop everything that this pool has started."""
