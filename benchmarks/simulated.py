"""A cluster that takes the time of real networks and computes nothing: for measuring the driver.

The study, its searches, the worker groups, the journals and the files are the real ones. Only the workers are made up: each
advances the rows of its batch by one step in as long as a real network would take, and answers with arrays of the real sizes.
"""

from __future__ import annotations

import asyncio
import heapq
import resource
import selectors
import time
import zlib
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import psutil

from lotts_search.actors.crew import Limits
from lotts_search.actors.engine_thread import Ready
from lotts_search.actors.tasks import rows
from lotts_search.actors.worker_group import WorkerGroup
from lotts_search.work.masks import ErrorContrastMask
from lotts_search.work.model import Defaults, ModelInfo
from lotts_search.work.pool import Checking
from lotts_search.work.prices import Prices
from lotts_search.work.requests import (
    Check,
    Encode,
    Judge,
    Locate,
    Located,
    Predict,
    Result,
    Score,
    ScoreMosaics,
    Segment,
    State,
    Usage,
    Work,
)


@dataclass
class Speed:
    """How long the made-up networks take: by default SDXL on an H100, and a verifier.

    Attributes:
        row_s: seconds of one row of the network.
        score_s: seconds of one score.
        batch: rows of a batch.
        side: of an image in pixels; a latent has an eighth of it.
    """

    row_s: float = 0.04
    score_s: float = 0.005
    batch: int = 16
    side: int = 1024
    steps: int = 50

    @property
    def info(self) -> ModelInfo:
        """Return what a search must know of the model."""
        cells = self.side // 8
        mask = ErrorContrastMask(levels=(400,), draws=1)
        defaults = Defaults(steps=self.steps, guidance=5.0, t0=self.steps // 2, integrate=2, mask=mask)
        prices = Prices(row=6e12, decode=2.5e12, preview=2.5e12, encode=1e12, score=1e12)
        return ModelInfo("simulated", "sdxl", (4, cells, cells), (self.side, self.side), prices, defaults)


class Clock(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Virtual time: the CPU seconds of the event loop, plus the time in which it would have waited, which is skipped.

    Attributes:
        engines_s: CPU seconds of made-up workers, which are not the driver's.
        threads_s: CPU seconds of calls that a real driver makes in other threads.
        waited: seconds skipped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.engines_s = self.threads_s = self.waited = 0.0

    def now(self) -> float:
        """Return the virtual time in seconds."""
        return time.process_time() - self.engines_s - self.threads_s + self.waited

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout != 0:
            assert timeout is not None, "everything waits for something that never happens"
            self.waited += max(0.0, timeout)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time. What it hands to threads runs at once, and is done when it would be done if ``threads``
    cores beside that of the loop shared such calls; with 0 the loop's core does them, too."""

    def __init__(self, clock: Clock, threads: int) -> None:
        super().__init__(clock)
        self.clock, self._free = clock, [0.0] * threads

    def time(self) -> float:
        return self.clock.now()

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> Any:
        future = self.create_future()
        called, began = self.time(), time.process_time()
        try:
            settle = partial(future.set_result, function(*arguments))
        except BaseException as error:
            settle = partial(future.set_exception, error)
        if not self._free:
            self.call_soon(settle)
            return future
        took = time.process_time() - began
        self.clock.threads_s += took
        end = max(called, heapq.heappop(self._free)) + took
        heapq.heappush(self._free, end)
        self.call_at(end, lambda: None if future.done() else settle())
        return future


class VirtualPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes :func:`asyncio.run` run in virtual time."""

    def __init__(self, clock: Clock, threads: int) -> None:
        super().__init__()
        self.clock, self.threads = clock, threads

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualLoop(self.clock, self.threads)


@dataclass(eq=False)
class Job:
    """A piece of work at a worker, and how many steps of it are left."""

    work: Work
    answer: Future[Result]
    rows: int
    left: int
    began: float
    used_s: float = 0.0


class FakeEngine:
    """Advances up to a batch of rows by one step per tick, and joins new work at the next tick, as the real engine does.

    Attributes:
        busy_s: seconds of its ticks.
    """

    def __init__(self, speed: Speed, seconds: float):
        self.speed, self.seconds = speed, seconds
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.busy_s = 0.0

    def add(self, work: Work, answer: Future[Result], now: float) -> None:
        """Accept a piece of work."""
        steps = int(work.nfe) if isinstance(work, Segment | Predict) else 1
        self.waiting.append(Job(work, answer, rows(work, self.speed.batch), max(1, steps), now))

    def start(self) -> float:
        """Begin a tick, and return how many seconds it takes; 0 where there is nothing to do."""
        free = self.speed.batch - sum(job.rows for job in self.running)
        while self.waiting and self.waiting[0].rows <= free:
            self.running.append(job := self.waiting.pop(0))
            free -= job.rows
        return self.seconds * sum(job.rows for job in self.running)

    def end(self, took: float, now: float, name: str) -> None:
        """End a tick of ``took`` seconds, and answer what is done."""
        self.busy_s += took
        total = sum(job.rows for job in self.running)
        for job in self.running:
            job.left -= 1
            job.used_s += took * job.rows / total
        done = [job for job in self.running if not job.left]
        self.running = [job for job in self.running if job.left]
        for job in done:
            result = answer(job.work, self.speed)
            result.usage.device_s = job.used_s
            result.started, result.finished, result.actor, result.node = job.began, now, name, "simulated"
            with suppress(InvalidStateError):
                job.answer.set_result(result)


def answer(work: Work, speed: Speed) -> Result:
    """Return an answer of the real size. Its score depends on the seed and lineage alone, and so on nothing that happens."""
    cells = speed.side // 8
    match work:
        case Segment():
            made = int(work.stop == work.sampling.steps)
            number = zlib.crc32(repr((work.search_seed, work.lineage, work.stop)).encode())
            state = State(_latent(number, cells), work.stop, work.sampling.steps, previous=_latent(number + 1, cells))
            used = Usage(nfe=work.nfe, rows=int(work.nfe) * 2, images=made, decodes=made)
            return Result(
                used, replace(state, previous=None) if made else state, _image(number, speed.side) if made else None
            )
        case Predict():
            number = zlib.crc32(work.state.latent.tobytes())
            state = replace(work.state, predicted=_latent(number, cells))
            used = Usage(nfe=work.nfe, rows=int(work.nfe) * 2, decodes=1, previews=1)
            return Result(used, state, _image(number, speed.side))
        case Locate():
            heat = _latent(zlib.crc32(repr(work.lineage).encode()), cells)[0]
            taken = work.source.rows()
            located = Located(heat > np.quantile(heat, 0.75), heat, {"heat": heat})
            return Result(Usage(nfe=taken / 2, rows=taken), located=located)
        case Encode():
            return Result(Usage(encodes=1), State(_latent(0, cells), work.steps, work.steps), work.image)
        case Score():
            return Result(Usage(scores=1), score=_score(work.image))
        case ScoreMosaics():
            return Result(Usage(scores=len(work.choices)), scores=tuple(float(c.mean()) for c in work.choices))
        case _:
            return Result(Usage())


def _image(number: int, side: int) -> np.ndarray:
    """Return a smooth image with the number in it, which takes as long to compress as a photograph of a wall."""
    image = np.empty((side, side, 3), np.uint8)
    image[:] = (np.arange(side) // 4 % 256).astype(np.uint8)[:, None]
    image.reshape(-1)[:4] = np.frombuffer(number.to_bytes(4, "little"), np.uint8)
    return image


def _latent(number: int, cells: int) -> np.ndarray:
    latent = np.random.default_rng(number % 1000).standard_normal(cells, np.float32) * np.ones(
        (4, cells, 1), np.float32
    )
    latent[0, 0, 0] = number
    return latent


def _score(image: np.ndarray) -> float:
    return zlib.crc32(image.reshape(-1)[:4].tobytes()) / 2**32


@dataclass(eq=False)
class FakeWorker:
    """A worker of a group, whose engine runs in the event loop."""

    name: str
    engine: FakeEngine
    running: bool = False

    def placed(self) -> Future[None]:
        return _done(None)

    def start(self) -> Future[Ready]:
        return _done(Ready(self.engine.speed.info, self.name, "simulated", 0))

    def ping(self) -> Future[None]:
        return _done(None)

    def kill(self) -> None:
        pass

    def run(self, work: Work) -> Future[Result]:
        loop, future = asyncio.get_running_loop(), Future[Result]()
        self.engine.add(work, future, loop.time())
        if not self.running:
            self.running = True
            loop.call_soon(self._tick)
        return future

    def _tick(self) -> None:
        with OwnTime():
            took = self.engine.start()
        self.running = took > 0
        if took:
            asyncio.get_running_loop().call_later(took, self._tock, took)

    def _tock(self, took: float) -> None:
        with OwnTime():
            self.engine.end(took, asyncio.get_running_loop().time(), self.name)
        self._tick()


class OwnTime:
    """Charges the CPU seconds of a block to the made-up workers instead of to the driver."""

    def __enter__(self) -> None:
        self.began = time.thread_time()

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.clock.engines_s += time.thread_time() - self.began


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@dataclass
class SimulatedPool(Checking):
    """A pool over the project's worker groups, with made-up workers in this process.

    Attributes:
        waiting: pieces of work that were submitted and are not done.
    """

    speed: Speed
    generators: int = 256
    judges: int = 4
    verifiers: tuple[str, ...] = ("shapes-reward",)
    rewriters: tuple[str, ...] = ()
    engines: list[FakeEngine] = field(default_factory=list)
    answered: int = 0

    def __post_init__(self) -> None:
        self.info = self.speed.info
        self._groups: tuple[WorkerGroup, WorkerGroup] | None = None

    def submit(self, work: Work) -> Future[Result]:
        """Queue a piece of work."""
        future: Future[Result] = Future()
        if isinstance(work, Check):
            future.set_result(Result(Usage(flops=1e12)))
            return future
        generators, judges = self._groups or self._open()
        (judges if isinstance(work, Judge) else generators).add(work, future)
        self.answered += 1
        return future

    def close(self) -> None:
        """Do nothing: there are no processes."""

    def _open(self) -> tuple[WorkerGroup, WorkerGroup]:
        loop = asyncio.get_running_loop()

        def group(kind: str, size: int, seconds: float) -> WorkerGroup:
            def spawn(number: int) -> FakeWorker:
                engine = FakeEngine(self.speed, seconds)
                if kind == "generator":
                    self.engines.append(engine)
                return FakeWorker(f"{kind}-{number}", engine)

            made = WorkerGroup(kind, size, self.speed.batch, spawn, lambda call: call(), Limits(), loop.time)
            made.open()
            return made

        self._groups = (
            group("generator", self.generators, self.speed.row_s),
            group("verifier", self.judges, self.speed.score_s),
        )
        return self._groups


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def used_by_children() -> dict[str, float]:
    """Return the CPU seconds of the processes that this one has started: of Ray's servers, and of its actors."""
    used = {"ray": 0.0, "actors": 0.0}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            times, words = process.cpu_times(), [process.name(), *process.cmdline()]
            used["actors" if any("ray::" in word for word in words) else "ray"] += times.user + times.system
    return used
