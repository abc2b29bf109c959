"""Jobs, the engine's open pieces of work: how they are charged, how they finish and how they fail."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import torch

from lotts_search.engine.transfer import Landings
from lotts_search.errors import Failure, LottsError, described
from lotts_search.localization.select import in_tokens, informed
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Bytes, Generate, Locate, Located, Predict, Result, Segment, State, Usage

Prompted: TypeAlias = Segment | Predict | Locate
"""Work that has a prompt."""
T = TypeVar("T")
W_co = TypeVar("W_co", bound=Generate, covariant=True)


@dataclass(eq=False)
class Job(Generic[W_co]):
    """A piece of work in the engine.

    Attributes:
        work: the request.
        cost: NFE that the work will be charged in total.
        future: of the result.
        submitted, started: seconds since the epoch; ``started`` is 0 until an operation takes the work up.
        usage: what it has been charged so far.
        conditioning: by prompt; None until the prompt is encoded.
    """

    work: W_co
    cost: float
    future: Future[Result] = field(default_factory=Future)
    submitted: float = field(default_factory=time.time)
    started: float = 0.0
    usage: Usage = field(default_factory=Usage)
    conditioning: dict[str, Any] = field(default_factory=dict)


class Jobs:
    """The jobs that are not done yet.

    Args:
        info: of the model.
        landings: of the engine.
    """

    def __init__(self, info: ModelInfo, landings: Landings):
        self._info, self._landings = info, landings
        self._open: dict[Future[Result], Job[Generate]] = {}

    def open(self, work: Generate) -> Job[Any]:
        """Return a new job."""
        job = Job(work, work.nfe)
        self._open[job.future] = job
        return job

    def __iter__(self) -> Iterator[Job[Generate]]:
        return iter(list(self._open.values()))

    def drop(self, job: Job[Generate]) -> None:
        """Forget a job whose future is done."""
        self._open.pop(job.future, None)

    def charge(self, job: Job[Prompted], rows: int, seconds: float) -> None:
        """Charge rows of a localization, which took ``seconds`` on the device. They cost their share of a step."""
        nfe = rows / (2 if job.work.sampling.guided else 1)
        job.usage += Usage(nfe=nfe, rows=rows, flops=rows * self._info.prices.row, device_s=seconds)

    def charge_calls(self, job: Job[Any], calls: int, rows: int, seconds: float) -> None:
        """Charge all network calls of a segment or preview, with ``rows`` rows each; confined ones are charged their share."""
        work: Segment | Predict = job.work
        nfe, step = float(calls), rows * self._info.prices.row
        flops = calls * step
        if isinstance(work, Segment) and work.confined:
            assert work.resampled is not None and work.resampled.confined is not None
            nfe, few = work.nfe, work.confined
            flops = (calls - few) * step + few * int(step * work.resampled.confined.share)
        job.usage += Usage(nfe=nfe, rows=calls * rows, flops=flops, device_s=seconds)

    def finish(
        self,
        job: Job[Generate],
        state: State | None = None,
        image: Bytes | None = None,
        located: Located | None = None,
        note: str = "",
    ) -> None:
        """Answer a job."""
        self.drop(job)
        started = job.started or job.submitted
        waited = started - job.submitted
        finished = time.time()
        result = Result(job.usage, state, image, located, queue_s=waited, started=started, finished=finished, note=note)
        with contextlib.suppress(InvalidStateError):  # failed or cancelled meanwhile
            job.future.set_result(result)

    def finish_located(self, job: Job[Locate], located: Located) -> None:
        """Answer a localization with a mask made of whole tokens of the network.

        Raises:
            Failure: the map is the same everywhere, and the work does not say what then follows.
        """
        found, note = informed(in_tokens(located, job.work.source.ratio, self._info.patch), job.work, self._info)
        self.finish(job, located=found, note=note)

    def locate(self, job: Job[Locate], finish: Callable[[], Located]) -> None:
        """Compute the mask of a localization whose network outputs have landed, and answer it."""
        self.attempt([job], partial(self._locate, job, finish))

    def _locate(self, job: Job[Locate], finish: Callable[[], Located]) -> None:
        with self._landings.beside():
            located = finish()
        self.finish_located(job, located)

    def fail(self, job: Job[Generate], error: LottsError) -> None:
        """Answer a job with an error."""
        self.drop(job)
        with contextlib.suppress(InvalidStateError):
            job.future.set_exception(error)

    def attempt(self, jobs: Iterable[Job[Generate]], action: Callable[[], object]) -> bool:
        """Do something for these jobs. If it raises, they fail, and the answer is False."""
        try:
            action()
            return True
        except Exception as error:
            self._blame(jobs, error)
            return False

    def isolate(
        self, items: list[T], action: Callable[[list[T]], None], jobs: Callable[[T], Iterable[Job[Generate]]]
    ) -> list[T]:
        """Do something for all items at once. If it raises, do it for each half of them, and so on, until the items
        that raise on their own are found.

        Args:
            jobs: returns the jobs that need an item.

        Returns:
            The items that raised on their own; their jobs have failed.
        """
        try:
            action(items)
            return []
        except Exception as error:
            # An error of the device itself stays: more calls would only raise it again.
            if len(items) > 1 and not isinstance(error, torch.AcceleratorError):
                half = len(items) // 2
                return self.isolate(items[:half], action, jobs) + self.isolate(items[half:], action, jobs)
            self._blame([job for item in items for job in jobs(item)], error)
            return items

    def _blame(self, jobs: Iterable[Job[Generate]], error: Exception) -> None:
        for job in jobs:
            if isinstance(error, LottsError):
                self.fail(job, error)
                continue
            source = getattr(job.work, "source", None)
            who = f"model {self._info.name}" + (f" with {type(source).__name__}" if source is not None else "")
            failure = Failure(f"{who} failed: {described(error)}")
            failure.__cause__ = error
            self.fail(job, failure)
