"""Stand-ins for the actors' engines without a model: a chaotic map replaces the network, and special prompts make it
misbehave.

``hold PATH``  waits until the file PATH exists     ``nan``     fails as if the latents were NaN
``kill``       kills its process                    ``break``   makes the engine itself raise
``say TEXT``   reports TEXT                         ``say bad`` does so and fails
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lotts_search.errors import BadInput, Failure, notice
from lotts_search.work.model import Defaults, ModelInfo
from lotts_search.work.prices import Prices
from lotts_search.work.requests import Floats, Fresh, Generate, Result, Rewrite, Sampling, Score, Segment, State, Usage

INFO = ModelInfo(
    "fake", "fake", (2, 4, 4), (8, 8), Prices(row=10.0), Defaults(steps=6, guidance=1.0, t0=3, integrate=1)
)


@dataclass
class Trajectory:
    work: Segment
    future: Future[Result]
    latent: Floats
    step: int


class FakeEngine:
    """Advance up to ``batch`` trajectories by one step per tick, in an order that differs between processes."""

    def __init__(self, batch: int, begun: Path | None) -> None:
        self.batch, self.begun = batch, begun
        self.running: list[Trajectory] = []
        self.order = random.Random(os.getpid())

    def submit(self, work: Generate) -> Future[Result]:
        assert isinstance(work, Segment)
        future: Future[Result] = Future()
        if work.sampling.prompt == "":
            future.set_exception(BadInput("the prompt is empty"))
            return future
        if isinstance(work.noise, Fresh):
            latent = np.random.default_rng([work.search_seed, work.noise.seed]).standard_normal(INFO.latent, np.float32)
        else:
            assert work.state is not None
            latent = work.state.latent
        self.running.append(Trajectory(work, future, latent, work.start))
        return future

    def tick(self) -> bool:
        self.running = [trajectory for trajectory in self.running if not trajectory.future.cancelled()]
        self.order.shuffle(self.running)
        for trajectory in self.running[: self.batch]:
            self.step(trajectory)
        self.running = [trajectory for trajectory in self.running if not trajectory.future.done()]
        return bool(self.running)

    def step(self, trajectory: Trajectory) -> None:
        work = trajectory.work
        verb, _, path = work.sampling.prompt.partition(" ")
        if verb == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif verb == "break":
            raise RuntimeError("device lost")
        elif verb == "say" and trajectory.step == work.start:
            notice(path)
            if path == "bad":
                trajectory.future.set_exception(Failure("it is bad"))
                return
        elif verb == "nan":
            trajectory.future.set_exception(Failure("NaN latents at step 0"))
            return
        elif verb == "hold" and not Path(path).exists():
            if self.begun is not None:
                (self.begun / str(os.getpid())).touch()
            time.sleep(0.001)
            return
        trajectory.latent = np.sin(3 * trajectory.latent + trajectory.step + 1).astype(np.float32)
        trajectory.step += 1
        if trajectory.step == work.stop:
            state = State(trajectory.latent, trajectory.step, work.sampling.steps)
            trajectory.future.set_result(Result(Usage(nfe=work.nfe, rows=int(work.nfe)), state=state))


class FakeScorer:
    """Score images by their brightness."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Score, Future[Result]]] = []

    def submit(self, work: Score) -> Future[Result]:
        future: Future[Result] = Future()
        self.waiting.append((work, future))
        return future

    def tick(self) -> bool:
        for work, future in self.waiting:
            if work.prompt == "odd":
                notice("an odd image")
            future.set_result(Result(Usage(scores=1), score=float(work.image.mean())))
        self.waiting = []
        return False


class Brightness:
    """A verifier without a model."""

    name = "brightness"
    requirements: tuple[str, ...] = ()

    @classmethod
    def load(cls) -> Brightness:
        return cls()

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.asarray(images.mean(axis=(1, 2, 3), dtype=np.float64), np.float32)


class Small(Brightness):
    """A verifier of images of 8 pixels."""

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if images.shape[1:3] != (8, 8):
            raise BadInput(f"images must be 8x8, not {images.shape[1]}x{images.shape[2]}")
        return super().score(prompts, images)


def make_engine(model: str, options: dict[str, Any], batch: int, threads: int) -> tuple[FakeEngine, ModelInfo]:
    if model == "broken":
        raise BadInput("the model folder 'broken' has no model_index.json")
    if model == "partly":
        notice("the adapter was merged in part")
    begun = options.get("begun")
    return FakeEngine(batch, None if begun is None else Path(begun)), INFO


def make_described(model: str, options: dict[str, Any], batch: int, threads: int) -> tuple[FakeEngine, ModelInfo]:
    """Return an engine whose family is its options."""
    return FakeEngine(batch, None), replace(INFO, family=json.dumps(options), loaded="{}")


def make_seeing(model: str, options: dict[str, Any], batch: int, threads: int) -> tuple[FakeEngine, ModelInfo]:
    """Return an engine whose family is the GPUs that its process sees."""
    return FakeEngine(batch, None), replace(INFO, family=os.environ.get("CUDA_VISIBLE_DEVICES", ""), loaded="{}")


def make_scorer(verifier: str, batch: int, threads: int) -> tuple[FakeScorer, str]:
    return FakeScorer(), verifier


def segment(seed: int, prompt: str = "a square", steps: int = 6) -> Segment:
    """Return the request for a whole sample."""
    return Segment(7, Sampling(prompt, steps, 1.0), (f"seed {seed}",), steps, noise=Fresh(seed))


@dataclass
class Echo:
    """A rewriter without a model: it returns the prompt, a setting and an environment variable."""

    word: str = "again"
    batch: int = 4
    parallel: int = 2
    timeout: float = 30.0

    requirements: ClassVar[tuple[str, ...]] = ()

    def rewrite(self, requests: Sequence[Rewrite]) -> list[list[str]]:
        known = os.environ.get("LOTTS_REWRITER_TEST", "")
        for request in requests:
            if request.prompt == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if request.prompt == "bad":
                raise ValueError("a bad reply")
        return [[f"{request.prompt} {self.word} {known}"] * request.count for request in requests]
