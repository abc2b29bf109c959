"""A pool whose model has a closed form: it really samples and refines, in microseconds and without torch. The default model
is the mixture of :mod:`lotts_search.testing.mixture`."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from lotts_search.engine.solver import LATENT, NOISE, PREVIOUS, X0, coefficients
from lotts_search.errors import BadInput, Failure
from lotts_search.testing.mixture import posterior, schedule
from lotts_search.work.change_maps import at_refinement, first_compared, unchanged
from lotts_search.work.masks import ErrorContrastMask, GivenMask, RandomMask, WholeMask
from lotts_search.work.model import Defaults, ModelInfo, Schedule
from lotts_search.work.mosaics import mosaic
from lotts_search.work.noise import draw, start_noise
from lotts_search.work.prices import Prices
from lotts_search.work.requests import (
    Bytes,
    Check,
    Encode,
    Floats,
    Locate,
    Located,
    Predict,
    Region,
    Result,
    Rewrite,
    Sampling,
    Score,
    ScoreMosaics,
    Segment,
    Solver,
    State,
    Usage,
    Work,
)

SHAPE = (1, 6, 6)
PRICES = Prices(row=1000.0, decode=150.0, preview=70.0, encode=30.0, score=7.0)
"""Made-up numbers, all different."""


def analytic_info(steps: int = 8, guidance: float = 3.0, t0: int = 3, integrate: int = 1) -> ModelInfo:
    """Return what a search must know of the model: 6×6 latents, images of 6×6 pixels, by default 8 guided steps."""
    mask = ErrorContrastMask(levels=(400,), draws=1)
    defaults = Defaults(steps=steps, guidance=guidance, t0=t0, integrate=integrate, mask=mask)
    return ModelInfo("analytic", "mixture", SHAPE, SHAPE[1:], PRICES, defaults)


class Model(Protocol):
    """A closed-form model of latents of ``shape`` [C, h, w], on :func:`lotts_search.testing.mixture.schedule`."""

    shape: tuple[int, int, int]

    def predict(self, latent: Floats, alpha: float, sigma: float) -> Floats:
        """Return ``E[x0 | x]`` of a latent ``x = alpha·x0 + sigma·ε``."""

    def image(self, latent: Floats) -> Bytes:
        """Return a clean latent as an image [h, w, 3]."""

    def latent(self, image: Bytes) -> Floats:
        """Return the clean latent of an image."""

    def score(self, image: Bytes) -> float:
        """Return the verifier's score of an image, whatever the prompt."""

    def damage(self, latent: Floats) -> Floats:
        """Return how much each position [h, w] of a clean latent needs resampling, 0..1."""


class Mixture:
    """The model of :mod:`lotts_search.testing.mixture`; its score is the share of intact positions, 0..1."""

    shape = SHAPE

    def predict(self, latent: Floats, alpha: float, sigma: float) -> Floats:
        return posterior(latent, alpha, sigma)[0].astype(np.float32)

    def image(self, latent: Floats) -> Bytes:
        """Return a grey image: intact positions are light, damaged ones dark."""
        grey = np.clip(np.round(127.5 + 63.75 * latent[0]), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)

    def latent(self, image: Bytes) -> Floats:
        return np.asarray((image[None, :, :, 0].astype(np.float32) - 127.5) / 63.75)

    def score(self, image: Bytes) -> float:
        return float(np.mean(image[..., 0] > 127))

    def damage(self, latent: Floats) -> Floats:
        """Return the probability of damage at each position, as the network sees it under noise."""
        return np.asarray(1 - posterior(latent[0], 0.9, math.sqrt(1 - 0.81))[1], np.float32)


class AnalyticPool:
    """A :class:`~lotts_search.work.pool.Pool` over a closed-form model. Its rewriter numbers the original prompt, and the
    scores are those of ``model``, whatever rewriter and verifier a search names.

    Args:
        info: what a search must know of the model, see :func:`analytic_info`.
        shuffle: None answers at once, in the order of the requests; a number answers from another thread, in a random
            order with this seed.
        fail: called before each piece of work; an error that it returns is the answer.
        model: the model.

    Attributes:
        asked: all requests so far.
    """

    verifiers: tuple[str, ...] = ("shapes-reward",)
    rewriters: tuple[str, ...] = ("shapes-rewriter",)

    def __init__(
        self,
        info: ModelInfo | None = None,
        shuffle: int | None = None,
        fail: Callable[[Work], Exception | None] = lambda work: None,
        model: Model = Mixture(),  # noqa: B008, it has no state
    ):
        self.info = info or analytic_info()
        self.asked: list[Work] = []
        self._fail, self._model = fail, model
        self._waiting: list[tuple[Work, Future[Result]]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        if shuffle is not None:
            self._thread = threading.Thread(target=self._serve, args=(random.Random(shuffle),), daemon=True)
            self._thread.start()

    def submit(self, work: Work) -> Future[Result]:
        """Request a piece of work."""
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
                # Wait briefly, so that there are several requests to shuffle.
                self._wake.wait_for(lambda: self._closed, timeout=0.0005)
                if self._closed:
                    return
                waiting, self._waiting = self._waiting, []
            rng.shuffle(waiting)
            for work, future in waiting:
                self._answer(work, future)

    def _answer(self, work: Work, future: Future[Result]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            error = self._fail(work)
            if error is not None:
                raise error
            future.set_result(answer(work, self._model))
        except Exception as error:
            future.set_exception(error)


def answer(work: Work, model: Model) -> Result:
    """Do a piece of work. This is a pure function."""
    match work:
        case Segment():
            return _segment(work, model)
        case Predict():
            known = work.state.predicted
            known = _predict(work.state, model) if known is None else known
            used = _used(work.nfe, work.sampling, decodes=1, previews=1)
            return Result(used, replace(work.state, predicted=known), image=model.image(known))
        case Locate():
            return _locate(work, model)
        case Check():
            return Result(Usage())
        case Encode():
            return Result(_priced(encodes=1), State(model.latent(work.image), work.steps, work.steps), image=work.image)
        case Score():
            return Result(_priced(scores=1), score=model.score(work.image))
        case ScoreMosaics():
            scores = tuple(model.score(mosaic(work.images, choice)) for choice in work.choices)
            return Result(_priced(scores=len(scores)), scores=scores)
        case Rewrite():
            prompts = tuple(f"{work.prompt}, version {number}" for number in range(1, work.count + 1))
            return Result(Usage(rewrites=1), prompts=prompts)


def _used(steps: float, sampling: Sampling, **counts: int) -> Usage:
    rows = steps * (2 if sampling.guided else 1)
    flops = PRICES.flops({**counts, "rows": rows})
    return Usage(nfe=steps, rows=math.ceil(rows), flops=flops, **counts)


def _priced(nfe: float = 0.0, **counts: int) -> Usage:
    return Usage(nfe=nfe, flops=PRICES.flops(counts), **counts)


def _predict(state: State, model: Model) -> Floats:
    times = schedule(state.steps)
    return model.predict(state.latent, times.alpha[state.step], times.sigma[state.step])


@lru_cache
def _table(steps: int, eta: float, solver: Solver) -> npt.NDArray[np.float64]:
    return coefficients(schedule(steps), eta, solver)


def _segment(work: Segment, model: Model) -> Result:
    """Apply the solver's formula and LoTTS Algorithm 2, step by step."""
    steps = work.sampling.steps
    seed, lineage = work.search_seed, work.lineage
    shape = model.shape
    times, table = schedule(steps), _table(steps, work.sampling.eta, work.sampling.solver)
    if work.noise is not None:
        state = State(start_noise(seed, work.noise, shape), 0, steps, change=unchanged(shape[1:], steps))
    else:
        assert work.state is not None
        state = work.state
    if work.renoise is not None:
        t0, region = work.renoise, work.region
        latent = times.alpha[t0] * state.latent + times.sigma[t0] * draw(seed, lineage, "inside", t0, shape)
        if region is not None:
            latent = np.where(region.mask, latent, _background(seed, region, t0, times))
        change = at_refinement(state.change, None if region is None else region.mask, t0, steps)
        state = State(latent.astype(np.float32), t0, steps, region=region, change=change)
    while state.step < work.stop:
        i, region = state.step, state.region
        x0 = _predict(state, model) if state.predicted is None else state.predicted
        c = table[int(state.previous is not None), i]
        previous = x0 if state.previous is None else state.previous
        noise = draw(seed, lineage, "step", i, shape)
        latent = c[LATENT] * state.latent + c[X0] * x0 + c[PREVIOUS] * previous + c[NOISE] * noise
        if region is not None and i < steps - region.integrate:
            latent = np.where(region.mask, latent, _background(seed, region, i + 1, times))
        change = state.change
        if change is not None and state.previous is not None and i >= first_compared(steps):
            grown = change + ((x0 - previous) ** 2).mean(0)
            change = grown if region is None else np.where(region.mask, grown, change)
        state = State(latent.astype(np.float32), i + 1, steps, previous=x0, region=region, change=change)
    image = model.image(state.latent) if state.complete else None
    made = int(state.complete)
    return Result(_used(work.nfe, work.sampling, images=made, decodes=made), state, image=image)


def _background(seed: int, region: Region, at: int, times: Schedule) -> npt.NDArray[np.float64]:
    """Return what is outside the mask at step ``at``: the origin, noised to that step unless it is kept clean."""
    if not region.spatial:
        return region.origin.astype(np.float64)
    noise = draw(seed, region.lineage, "outside", at if region.background == "fresh" else 0, region.origin.shape)
    return np.asarray(times.alpha[at] * region.origin + times.sigma[at] * noise)


def _locate(work: Locate, model: Model) -> Result:
    """Locate the most damaged positions."""
    source = work.source
    if isinstance(source, GivenMask):
        raise BadInput("the analytic model takes no given mask")
    shape = model.shape[1:]
    if isinstance(source, RandomMask):
        heat = draw(work.search_seed, work.lineage, "locate", 0, shape)
    else:
        heat = model.damage(work.state.latent)
    count = math.ceil(source.ratio * heat.size)
    mask = np.zeros(heat.size, bool)
    mask[np.argsort(-heat.ravel(), kind="stable")[:count]] = True
    if isinstance(source, WholeMask):
        mask[:] = True
    rows = source.rows()
    usage = _priced(nfe=rows / 2 if work.sampling.guided else rows, rows=rows)
    return Result(usage, located=Located(mask.reshape(shape), heat, {"heat": heat}))


def nan_latents(work: Work) -> Exception | None:
    """Let every segment end in NaN: a ``fail`` for :class:`AnalyticPool`."""
    return Failure("the latent is NaN at step 3") if isinstance(work, Segment) else None
