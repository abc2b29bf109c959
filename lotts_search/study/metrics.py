"""Judging the images of finished searches with the metrics of a study.

A registered metric (:class:`~lotts_search.verifiers.metric.Metric`) judges in a process or thread beside the driver, a
verifier through the pool.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import Self

import numpy as np

from lotts_search import registry
from lotts_search.core.result import SearchResult
from lotts_search.core.trial_table import TrialRecord
from lotts_search.errors import Failure
from lotts_search.verifiers.metric import Metric
from lotts_search.verifiers.spec import VerifierSpec
from lotts_search.work.pool import Checking, Pool
from lotts_search.work.requests import Bytes, Score

COMPLETE = ("sample", "refine", "advance", "encode")
"""Kinds of trials that make candidates; those with an image are complete."""


def columns_of(metrics: Sequence[str]) -> list[str]:
    """Return the names of the columns ``metric_*`` that metrics fill."""
    found: list[str] = []
    for name in metrics:
        metric = registry.metric_class(name)
        found += [VerifierSpec.parse(name).column] if metric is None else metric.columns
    return found


class Judges:
    """The metrics of a study. Use it as a context manager.

    Args:
        metrics: names of metrics, and of verifiers of the pool.
        judged: all complete images, or only those that were the best so far at some time.
        processes: of each metric that works in processes of its own.
    """

    def __init__(self, metrics: Sequence[str], judged: str = "all", processes: int = 1):
        self.metrics, self.judged, self._processes = metrics, judged, processes
        self._executors: dict[str, Executor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for executor in self._executors.values():
            executor.shutdown(cancel_futures=True)
        self._executors.clear()

    async def probe(self, pool: Pool, prompt: str) -> None:
        """Let the verifiers among the metrics score an image of noise, before a search is paid for.

        Raises:
            LottsError: one of them cannot score images of the model's size.
        """
        if isinstance(pool, Checking):
            for name in self.metrics:
                if registry.metric_class(name) is None:
                    await asyncio.shield(asyncio.wrap_future(pool.probe(name, prompt)))

    async def judge(self, result: SearchResult, pool: Pool, everything: bool) -> None:
        """Fill the metrics of the rows of a search's complete images.

        Args:
            everything: overrides ``judged``: a nested search stands for smaller ones with other best images.

        Raises:
            LottsError: a metric failed.
        """
        rows = complete(result.trials)
        if self.judged == "best" and not everything:
            rows = leaders(rows)
        if not rows or not self.metrics:
            return
        images = [result.images[row.trial_id] for row in rows]
        for values in await asyncio.gather(*(self._values(name, result.prompt, images, pool) for name in self.metrics)):
            for column, of_images in values.items():
                for row, value in zip(rows, of_images, strict=True):
                    row.metrics[column] = float(value)

    async def _values(self, name: str, prompt: str, images: list[Bytes], pool: Pool) -> Mapping[str, Sequence[float]]:
        metric = registry.metric_class(name)
        if metric is None:
            asked = [asyncio.wrap_future(pool.submit(Score(name, prompt, image))) for image in images]
            scores = [answer.score for answer in await asyncio.gather(*asked)]
            return {VerifierSpec.parse(name).column: [score for score in scores if score is not None]}
        if name not in self._executors:
            # Spawned, not forked: threads of a pool are running.
            self._executors[name] = (
                ProcessPoolExecutor(self._processes, multiprocessing.get_context("spawn"), _ignore_interrupts)
                if metric.processes
                else ThreadPoolExecutor(1)
            )
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executors[name], _judge, name, np.stack(images), prompt)
        except BrokenExecutor as error:
            self._executors.pop(name, None)  # the next search gets new processes
            raise Failure(f"a process of {name} died") from error


def complete(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the rows that made complete images."""
    return [row for row in trials if row.image is not None and row.kind in COMPLETE]


def leaders(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the rows of complete images that were the best so far at some time, and of the best refined one."""
    found: list[TrialRecord] = []
    refined: TrialRecord | None = None
    for row in complete(trials):
        if row.score is None:
            continue
        if not found or row.score > (found[-1].score or 0.0):
            found.append(row)
        if row.mask_ratio is not None and (refined is None or row.score > (refined.score or 0.0)):
            refined = row
    return found if refined is None or refined in found else [*found, refined]


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes; the driver alone decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def _load(name: str) -> Metric:
    metric = registry.metric_class(name)
    assert metric is not None
    return metric()


def _judge(name: str, images: Bytes, prompt: str) -> Mapping[str, Sequence[float]]:
    return _load(name).judge(images, prompt)
