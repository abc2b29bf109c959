"""Micro-batched scoring: score many pending :class:`lotts_search.work.requests.Score` in one call of a verifier."""

from __future__ import annotations

import math
import platform
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lotts_search.errors import BadInput, Failure, LottsError, described
from lotts_search.verifiers.base import Verifier
from lotts_search.work.requests import Result, Score, Usage


@dataclass
class _PendingScore:
    work: Score
    future: Future[Result]
    submitted: float = field(default_factory=time.time)


class ScoreBatcher:
    """Collect requests for one verifier and score up to ``max_batch`` of them in one call.

    Any thread may :meth:`submit`; one thread at a time drives :meth:`tick`.

    Args:
        verifier: the verifier.
        max_batch: maximum number of images per call, 1 or more; the verifier's own ``batch`` replaces it.
        pad: fill each call to exactly ``max_batch`` rows by repeating its own rows, so that a score does not depend
            on how many others were waiting (numerical libraries choose their kernels by batch size); not where the
            verifier has ``pad = False``.
    """

    def __init__(self, verifier: Verifier, max_batch: int = 16, pad: bool = True):
        self.verifier = verifier
        self.name = str(getattr(verifier, "name", type(verifier).__name__))
        own = getattr(verifier, "batch", None)
        self.max_batch = max_batch if own is None else own
        if not isinstance(self.max_batch, int) or self.max_batch < 1:
            whose = "max_batch" if own is None else f"batch of verifier {self.name!r}"
            raise BadInput(f"{whose} must be a whole number of 1 or more, not {self.max_batch}")
        self.pad = pad and bool(getattr(verifier, "pad", True))
        self._waiting: deque[_PendingScore] = deque()
        self._lock = threading.Lock()

    @property
    def outstanding(self) -> int:
        """Return the number of requests that have not been started."""
        with self._lock:
            return len(self._waiting)

    def submit(self, work: Score) -> Future[Result]:
        """Queue a request; its future fails with a :class:`LottsError`. Never blocks."""
        future: Future[Result] = Future()
        with self._lock:
            self._waiting.append(_PendingScore(work, future))
        return future

    def tick(self) -> bool:
        """Score up to ``max_batch`` waiting images in one call; return False if none was waiting."""
        batch = self._take()
        if not batch:
            return False
        self._finish(batch)
        return True

    def _take(self) -> list[_PendingScore]:
        """Return the oldest waiting item and later ones with images of the same shape; drop cancelled ones."""
        batch: list[_PendingScore] = []
        later: deque[_PendingScore] = deque()
        with self._lock:
            while self._waiting and len(batch) < self.max_batch:
                item = self._waiting.popleft()
                if batch and item.work.image.shape != batch[0].work.image.shape:
                    later.append(item)
                elif item.future.set_running_or_notify_cancel():
                    batch.append(item)
            self._waiting.extendleft(reversed(later))
        return batch

    def _finish(self, batch: list[_PendingScore]) -> None:
        started = time.time()
        clock = time.perf_counter()
        try:
            scores = self._scores([item.work for item in batch])
        except Exception as error:
            if len(batch) > 1:  # score them one by one: only the faulty one fails
                for item in batch:
                    self._finish([item])
                return
            batch[0].future.set_exception(_as_failure(self.name, error))
            return
        share = (time.perf_counter() - clock) / len(batch)
        finished = time.time()
        for item, score in zip(batch, scores, strict=True):
            if not (item.work.probe or math.isfinite(score)):
                item.future.set_exception(Failure(f"verifier {self.name!r} returned the score {score}"))
                continue
            item.future.set_result(
                Result(
                    Usage(scores=1, device_s=share),
                    score=float(score),
                    queue_s=max(0.0, started - item.submitted),
                    started=started,
                    finished=finished,
                    node=platform.node(),
                )
            )

    def _scores(self, works: Sequence[Score]) -> npt.NDArray[np.float32]:
        count = len(works)
        rows = [works[i % count] for i in range(self.max_batch if self.pad else count)]
        scores = np.asarray(
            self.verifier.score([w.prompt for w in rows], np.stack([w.image for w in rows])), dtype=np.float32
        )
        if scores.shape != (len(rows),):
            raise Failure(f"verifier {self.name!r} returned scores of shape {scores.shape}, not ({len(rows)},)")
        return scores[:count]


def _as_failure(name: str, error: Exception) -> LottsError:
    if isinstance(error, LottsError):
        return error
    failure = Failure(f"verifier {name!r} failed: {described(error)}")
    failure.__cause__ = error
    return failure
