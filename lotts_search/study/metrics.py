"""Held-out metrics: they judge the images of a finished search and never guide one.

A verifier is asked through the pool. The oracle of the shapes world works in processes of its own, since it would hold up
the driver.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from lotts_search.core.result import SearchResult
from lotts_search.core.trial_table import TrialRecord
from lotts_search.errors import Failure
from lotts_search.study.spec import ORACLE
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bytes, Score

COMPLETE = ("sample", "refine", "advance", "encode")
"""Kinds of trials that make candidates; with an image, complete ones."""


def columns_of(metrics: Sequence[str]) -> list[str]:
    """The names of the columns ``metric_*`` that metrics fill."""
    found: list[str] = []
    for name in metrics:
        found += ["oracle", "perfect"] if name == ORACLE else [_column(name)]
    return found


class Judges:
    """The metrics of a study. Use it as a context manager.

    Args:
        metrics: names of verifiers that the pool has, and :data:`~lotts_search.study.spec.ORACLE`.
        judged: all complete images, or only those that were the best so far at some time.
        processes: of the oracle.
    """

    def __init__(self, metrics: Sequence[str], judged: str = "all", processes: int = 1):
        self.metrics, self.judged, self._processes = metrics, judged, processes
        self._oracle: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._oracle is not None:
            self._oracle.shutdown(cancel_futures=True)
            self._oracle = None

    async def judge(self, result: SearchResult, pool: Pool, everything: bool) -> None:
        """Fill the metrics of the rows of a search's complete images. ``everything`` overrides ``judged``: a nested
        search stands for smaller ones, whose best images are others.

        Raises:
            LottsError: a verifier failed.
        """
        rows = complete(result.trials)
        if self.judged == "best" and not everything:
            rows = leaders(rows)
        if not rows or not self.metrics:
            return
        images = [result.images[row.trial_id] for row in rows]
        await asyncio.gather(*(self._metric(name, result.prompt, rows, images, pool) for name in self.metrics))

    async def _metric(self, name: str, prompt: str, rows: list[TrialRecord], images: list[Bytes], pool: Pool) -> None:
        if name == ORACLE:
            if self._oracle is None:
                # Not by fork: threads of a pool are running.
                context = multiprocessing.get_context("spawn")
                self._oracle = ProcessPoolExecutor(self._processes, context, _ignore_interrupts)
            loop = asyncio.get_running_loop()
            try:
                verdicts = await loop.run_in_executor(self._oracle, _judge, np.stack(images), prompt)
            except BrokenExecutor as error:
                self._oracle = None  # the next search gets a new one
                raise Failure("a process of the oracle died") from error
            for row, (quality, perfect) in zip(rows, verdicts, strict=True):
                row.metrics |= {"oracle": quality, "perfect": perfect}
            return
        asked = [asyncio.wrap_future(pool.submit(Score(name, prompt, image))) for image in images]
        for row, answer in zip(rows, await asyncio.gather(*asked), strict=True):
            assert answer.score is not None
            row.metrics[_column(name)] = answer.score


def complete(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The rows that made complete images."""
    return [row for row in trials if row.image is not None and row.kind in COMPLETE]


def leaders(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The rows of complete images that were the best so far at some time, and of the best refined one."""
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


def _column(name: str) -> str:
    return name.rpartition(":")[2]


def _ignore_interrupts() -> None:
    """Ctrl-C in a terminal reaches all processes; the driver alone decides what ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _judge(images: Bytes, prompt: str) -> list[tuple[float, float]]:
    """The oracle's quality, 0..1, and whether an image is perfect, 0 or 1, of each image."""
    from lotts_search.shapes.world.oracle import judge_many
    from lotts_search.shapes.world.scene import parse_caption

    scene = parse_caption(prompt)
    return [(v.quality, float(v.perfect)) for v in judge_many(images, [scene] * len(images))]
