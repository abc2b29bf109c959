"""A pool whose model is a mixture with a closed form: real sampling and refining in microseconds, without torch."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt

from lotts_search.backbones.base import Defaults, ModelInfo
from lotts_search.errors import BadInput, Failure
from lotts_search.masks import ErrorContrastMask, GivenMask, RandomMask, WholeMask
from lotts_search.noise import draw, start_noise
from lotts_search.solver import LATENT, NOISE, PREVIOUS, X0, coefficients
from lotts_search.testing.mixture import posterior, schedule
from lotts_search.work import (
    Bytes,
    Encode,
    Floats,
    Generate,
    Locate,
    Located,
    Predict,
    Result,
    Sampling,
    Score,
    Segment,
    Solver,
    State,
    Usage,
)

SHAPE = (1, 6, 6)
FLOPS = 1000.0


def analytic_info(steps: int = 8, guidance: float = 3.0, t0: int = 3, integrate: int = 1) -> ModelInfo:
    """The model: 6×6 latents, pictures of 6×6 pixels; by default 8 guided steps."""
    mask = ErrorContrastMask(levels=(400,), draws=1)
    defaults = Defaults(steps=steps, guidance=guidance, t0=t0, integrate=integrate, mask=mask)
    return ModelInfo("analytic", "mixture", SHAPE, SHAPE[1:], FLOPS, defaults)


class AnalyticPool:
    """A :class:`~lotts_search.pool.Pool` over :mod:`lotts_search.testing.mixture`. Its verifier scores the share of
    intact positions, 0..1, whatever its name and the prompt.

    Args:
        info: the model, see :func:`analytic_info`.
        shuffle: None answers at once, in the order of the questions; a number answers from another thread, in a random
            order of that seed.
        fail: asked before each piece of work; the error it returns is the answer.
    """

    def __init__(
        self,
        info: ModelInfo | None = None,
        shuffle: int | None = None,
        fail: Callable[[Generate | Score], Exception | None] = lambda work: None,
    ):
        self.info = info or analytic_info()
        self.asked: list[Generate | Score] = []
        self._fail = fail
        self._waiting: list[tuple[Generate | Score, Future[Result]]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        if shuffle is not None:
            self._thread = threading.Thread(target=self._serve, args=(random.Random(shuffle),), daemon=True)
            self._thread.start()

    def submit(self, work: Generate | Score) -> Future[Result]:
        """Ask for a piece of work; all that was asked for is in ``asked``."""
        self.asked.append(work)
        future: Future[Result] = Future()
        if self._thread is None:
            self._answer(work, future)
            return future
        with self._wake:
            self._waiting.append((work, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Stop answering."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _serve(self, rng: random.Random) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                # A short wait lets questions gather, so that there is something to shuffle.
                self._wake.wait_for(lambda: self._closed, timeout=0.0005)
                if self._closed:
                    return
                waiting, self._waiting = self._waiting, []
            rng.shuffle(waiting)
            for work, future in waiting:
                self._answer(work, future)

    def _answer(self, work: Generate | Score, future: Future[Result]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            error = self._fail(work)
            if error is not None:
                raise error
            future.set_result(answer(work))
        except Exception as error:
            future.set_exception(error)


def answer(work: Generate | Score) -> Result:
    """Do a piece of work: a pure function."""
    match work:
        case Segment():
            return _segment(work)
        case Predict():
            state = replace(work.state, predicted=_predict(work.state.latent, work.state))
            assert state.predicted is not None
            return Result(_used(1, work.sampling, decodes=1), state, image=picture(state.predicted))
        case Locate():
            return _locate(work)
        case Encode():
            latent = (work.image[None, :, :, 0].astype(np.float32) - 127.5) / 63.75
            return Result(Usage(), State(latent, work.steps, work.steps), image=work.image)
        case Score():
            return Result(Usage(scores=1), score=float(np.mean(work.image[..., 0] > 127)))


def picture(latent: Floats) -> Bytes:
    """A clean latent [1, h, w] as a grey picture [h, w, 3]: intact is light, damaged dark."""
    grey = np.clip(np.round(127.5 + 63.75 * latent[0]), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _used(steps: float, sampling: Sampling, images: int = 0, decodes: int = 0) -> Usage:
    rows = int(steps * (2 if sampling.guided else 1))
    return Usage(nfe=steps, rows=rows, flops=rows * FLOPS, images=images, decodes=decodes)


def _predict(latent: Floats, state: State) -> Floats:
    times = schedule(state.steps)
    return posterior(latent, times.alpha[state.step], times.sigma[state.step])[0].astype(np.float32)


@lru_cache
def _table(steps: int, eta: float, solver: Solver) -> npt.NDArray[np.float64]:
    return coefficients(schedule(steps), eta, solver)


def _segment(work: Segment) -> Result:
    """The solver's formula and DESIGN §6.2, step by step."""
    steps, seed, lineage = work.sampling.steps, work.search_seed, work.lineage
    times, table = schedule(steps), _table(steps, work.sampling.eta, work.sampling.solver)
    if work.noise is not None:
        state = State(start_noise(seed, work.noise, SHAPE), 0, steps)
    else:
        assert work.state is not None
        state = work.state
    if work.renoise is not None:
        assert work.region is not None
        mask, t0 = work.region.mask, work.renoise
        inside, outside = draw(seed, lineage, "inside", 0, SHAPE), draw(seed, lineage, "outside", 0, SHAPE)
        latent = times.alpha[t0] * state.latent + times.sigma[t0] * np.where(mask, inside, outside)
        state = State(latent.astype(np.float32), t0, steps, region=work.region)
    while state.step < work.stop:
        i, region = state.step, state.region
        x0 = _predict(state.latent, state) if state.predicted is None else state.predicted
        c = table[int(state.previous is not None), i]
        previous = x0 if state.previous is None else state.previous
        noise = draw(seed, lineage, "step", i, SHAPE)
        latent = c[LATENT] * state.latent + c[X0] * x0 + c[PREVIOUS] * previous + c[NOISE] * noise
        if region is not None and i < steps - region.integrate:
            outside = draw(seed, region.lineage, "outside", 0, SHAPE)
            kept = times.alpha[i + 1] * region.origin + times.sigma[i + 1] * outside
            latent = np.where(region.mask, latent, kept)
        state = State(latent.astype(np.float32), i + 1, steps, previous=x0, region=region)
    image = picture(state.latent) if state.complete else None
    made = int(state.complete)
    return Result(_used(work.nfe, work.sampling, images=made, decodes=made), state, image=image)


def _locate(work: Locate) -> Result:
    """The most probably damaged positions, under the noise of the network's look."""
    source = work.source
    if isinstance(source, GivenMask):
        raise BadInput("the analytic model takes no given mask")
    shape = SHAPE[1:]
    if isinstance(source, RandomMask):
        heat = draw(work.search_seed, work.lineage, "locate", 0, shape)
    else:
        heat = (1 - posterior(work.state.latent[0], 0.9, math.sqrt(1 - 0.81))[1]).astype(np.float32)
    count = math.ceil(source.ratio * heat.size)
    mask = np.zeros(heat.size, bool)
    mask[np.argsort(-heat.ravel(), kind="stable")[:count]] = True
    if isinstance(source, WholeMask):
        mask[:] = True
    rows = source.rows()
    usage = Usage(nfe=rows / 2 if work.sampling.guided else rows, rows=rows, flops=rows * FLOPS)
    return Result(usage, located=Located(mask.reshape(shape), heat, {"heat": heat}))


def nan_latents(work: Generate | Score) -> Exception | None:
    """A ``fail`` for :class:`AnalyticPool`: every segment ends in NaN."""
    return Failure("the latent is NaN at step 3") if isinstance(work, Segment) else None
