"""Where work runs: one interface for this process (:class:`lotts_search.engine.local_pool.LocalPool`) and for Ray
(:class:`lotts_search.actors.ray_pool.RayPool`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from functools import cached_property
from typing import Protocol

import numpy as np

from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Check, Result, Score, Work


class Pool(Protocol):
    """Runs work. ``submit`` never blocks; futures fail with a :class:`lotts_search.errors.LottsError`.

    Work is idempotent: a pool may try it again elsewhere after a failure, and says so in ``Result.attempts``
    and ``Result.usage.nfe_wasted``.

    Attributes:
        info: description of the model.
        verifiers, rewriters: their names; a search that names none takes the only one.
    """

    info: ModelInfo
    verifiers: tuple[str, ...]
    rewriters: tuple[str, ...]

    def submit(self, work: Work) -> Future[Result]:
        """Request a piece of work."""

    def close(self) -> None:
        """Stop everything that this pool has started."""


class Checking(ABC):
    """A pool that can say what of a search cannot work, before anything is paid for."""

    info: ModelInfo

    @abstractmethod
    def submit(self, work: Work) -> Future[Result]:
        """See :class:`Pool`."""

    @cached_property
    def _probes(self) -> dict[str, Future[Result]]:
        return {}

    def check(self, work: Check) -> list[Future[Result]]:
        """Probe the verifier of a search, and check the search on the model.

        Raises:
            BadInput: the pool does not have the verifier.
        """
        return [self.probe(work.verifier, work.sampling.prompt), self.submit(work)]

    def probe(self, verifier: str, prompt: str) -> Future[Result]:
        """Score one image of noise of the model's size; a verifier that could score it is not asked again.

        Raises:
            BadInput: the pool does not have the verifier.
        """
        probe = self._probes.get(verifier)
        if probe is None or (probe.done() and (probe.cancelled() or probe.exception() is not None)):
            # Noise, because a verifier may rightly have no score for an image without any content.
            image = np.random.default_rng(0).integers(0, 256, (*self.info.image, 3), np.uint8)
            probe = self._probes[verifier] = self.submit(Score(verifier, prompt, image, probe=True))
        return probe
