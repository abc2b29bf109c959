"""Micro-batched scoring: the images of many pending requests are scored in one call of a verifier."""

from __future__ import annotations

import math
import platform
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lotts_search.errors import BadInput, Failure, LottsError, described
from lotts_search.verifiers.base import Verifier
from lotts_search.work.batch_sizes import ROWS, Batch, BatchSizes
from lotts_search.work.fitting import Fitting
from lotts_search.work.mosaics import mosaic
from lotts_search.work.requests import Bytes, Judge, Result, Score, Usage


@dataclass(eq=False)
class _Pending:
    """A request with the scores of its images so far, by their numbers."""

    work: Judge
    submitted: float = field(default_factory=time.time)
    future: Future[Result] = field(default_factory=Future)
    scores: dict[int, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    started: float = 0.0

    @property
    def count(self) -> int:
        """Images to score."""
        return 1 if isinstance(self.work, Score) else len(self.work.choices)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image."""
        return self.work.image.shape if isinstance(self.work, Score) else self.work.images.shape[1:]

    def image(self, number: int) -> Bytes:
        """Return an image [h, w, 3]."""
        return self.work.image if isinstance(self.work, Score) else mosaic(self.work.images, self.work.choices[number])

    def begin(self) -> bool:
        """Return whether its images are still to be scored."""
        if not self.started:
            self.started = time.time()
            self.future.set_running_or_notify_cancel()
        return self.future.running()


class _Row(NamedTuple):
    """One image of a request."""

    request: _Pending
    number: int


class ScoreBatcher:
    """Collect requests for one verifier and score as many of them as a batch has in one call.

    Any thread may :meth:`submit`; one thread at a time drives :meth:`tick`.

    Args:
        verifier: the verifier.
        batch: images of a call, or several sizes; the verifier's own ``batch`` is the most of them.
        pad: fill each call up to the smallest size that holds it by repeating its own rows. With one size a score does not depend
            on how many others were waiting. Not where the verifier has ``pad = False``.

    Attributes:
        flops: floating-point operations of one score; 0 = not known.
    """

    def __init__(self, verifier: Verifier, batch: Batch = ROWS, pad: bool = True):
        self.verifier = verifier
        self.name = str(getattr(verifier, "name", type(verifier).__name__))
        self.sizes, own = BatchSizes.of(batch), getattr(verifier, "batch", None)
        if own is not None:
            if not isinstance(own, int) or own < 1:
                raise BadInput(f"batch of verifier {self.name!r} must be a whole number of 1 or more, not {own}")
            self.sizes = self.sizes.up_to(own)
        self.pad = pad and bool(getattr(verifier, "pad", True))
        self.flops = float(getattr(verifier, "flops", 0.0))
        self._fitting = Fitting(f"the verifier {self.name}")
        self._waiting: deque[_Row] = deque()
        self._lock = threading.Lock()

    @property
    def outstanding(self) -> int:
        """Return the number of images that wait."""
        with self._lock:
            return len(self._waiting)

    def submit(self, work: Judge) -> Future[Result]:
        """Queue a request; its future fails with a :class:`LottsError`. Never blocks."""
        request = _Pending(work)
        with self._lock:
            self._waiting.extend(_Row(request, number) for number in range(request.count))
        return request.future

    def tick(self) -> bool:
        """Score as many waiting images as a call takes; return False if none was waiting."""
        batch = self._take()
        if not batch:
            return False
        self._finish(batch)
        return True

    def _take(self) -> list[_Row]:
        """Return the oldest waiting image and later ones of the same shape; drop those of requests that are over."""
        batch: list[_Row] = []
        later: deque[_Row] = deque()
        with self._lock:
            while self._waiting and len(batch) < self.sizes.most:
                row = self._waiting.popleft()
                if batch and row.request.shape != batch[0].request.shape:
                    later.append(row)
                elif row.request.begin():
                    batch.append(row)
            self._waiting.extendleft(reversed(later))
        return batch

    def _finish(self, batch: list[_Row]) -> None:
        clock = time.perf_counter()
        try:
            scores = self._scores(batch)
        except Exception as error:
            if len(batch) > 1:  # score them one by one: only the faulty one fails
                for row in batch:
                    if row.request.future.running():  # one of its images failed already
                        self._finish([row])
                return
            _fail(batch[0], _as_failure(self.name, error))
            return
        share = (time.perf_counter() - clock) / len(batch)
        for row, score in zip(batch, scores.tolist(), strict=True):
            self._enter(row, score, share)

    def _enter(self, row: _Row, score: float, seconds: float) -> None:
        """Enter a score; the last one answers the request."""
        request, work = row.request, row.request.work
        if not (math.isfinite(score) or (isinstance(work, Score) and work.probe)):
            _fail(row, Failure(f"verifier {self.name!r} returned the score {score}"))
            return
        request.scores[row.number] = score
        request.usage += Usage(scores=1, flops=self.flops, device_s=seconds)
        if len(request.scores) < request.count or request.future.done():
            return
        scores = [request.scores[number] for number in range(request.count)]
        request.future.set_result(
            Result(
                request.usage,
                score=scores[0] if isinstance(work, Score) else None,
                scores=() if isinstance(work, Score) else tuple(scores),
                queue_s=max(0.0, request.started - request.submitted),
                started=request.started,
                finished=time.time(),
                node=platform.node(),
            )
        )

    def _scores(self, batch: Sequence[_Row]) -> npt.NDArray[np.float32]:
        count = len(batch)
        images = [row.request.image(row.number) for row in batch]
        rows = [i % count for i in range(self.sizes.holding(count) if self.pad else count)]

        def part(some: slice) -> npt.NDArray[np.float32]:
            prompts = [batch[i].request.work.prompt for i in rows[some]]
            found = np.asarray(self.verifier.score(prompts, np.stack([images[i] for i in rows[some]])))
            if np.iscomplexobj(found):
                raise Failure(f"verifier {self.name!r} returned complex numbers")
            scores = found.astype(np.float32)
            if scores.shape != (len(prompts),):
                raise Failure(f"verifier {self.name!r} returned scores of shape {scores.shape}, not ({len(prompts)},)")
            return scores

        return np.concatenate(self._fitting.run(len(rows), part))[:count]


def _fail(row: _Row, error: LottsError) -> None:
    if not row.request.future.done():
        row.request.future.set_exception(error)


def _as_failure(name: str, error: Exception) -> LottsError:
    if isinstance(error, LottsError):
        return error
    failure = Failure(f"verifier {name!r} failed: {described(error)}")
    failure.__cause__ = error
    return failure
