"""Running the searches of a study, many at once and model by model; each is written to its folder when it ends."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from lotts_search import registry
from lotts_search.api import asearch
from lotts_search.core.costs import Costs
from lotts_search.core.events import Event, TrialFinished
from lotts_search.core.journal import Journal
from lotts_search.core.records import JournalError
from lotts_search.core.result import SearchFailed, SearchResult
from lotts_search.errors import Failure, LostWork, PoolClosed
from lotts_search.study.folder import RunFolder
from lotts_search.study.keep import Writer
from lotts_search.study.metered_pool import Meter
from lotts_search.study.metrics import Judges, columns_of
from lotts_search.study.searches import Task, estimate, longest_first
from lotts_search.study.signals import terminable
from lotts_search.study.spec import ModelEntry, Study
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Sampling

ROOM_S = 0.02
"""Seconds between looks at whether the pool has room for another search."""

OpenPool = Callable[[ModelEntry, Sequence[str]], AbstractContextManager[Pool]]
"""Opens the pool of a model with verifiers."""


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        total, finished, failed: numbers of searches; ``total`` of those that this run has to do.
        nfe: NFE of finished trials, including those from journals; ``planned``: of all that this run has to do.
        scores: of finished searches, by label.
        meter: of the current pool; None where other drivers do the work, whose rate is ``told_rate``.
        model: the label of the current model.
        writing: seconds spent writing results.
        begun, seconds: start (``time.monotonic``) and length of the current model's share of a time limit.
    """

    total: int = 0
    finished: int = 0
    failed: int = 0
    nfe: float = 0.0
    planned: float = 0.0
    scores: dict[str, list[float]] = field(default_factory=dict)
    meter: Meter | None = None
    told_rate: float = 0.0
    model: str = ""
    writing: float = 0.0
    begun: float = 0.0
    seconds: float | None = None

    @property
    def share(self) -> float:
        """Return the share of the work that is done, or of the time that is over, whichever is larger: 0..1."""
        work = self.nfe / self.planned if self.planned else 0.0
        return max(work, (time.monotonic() - self.begun) / self.seconds if self.seconds else 0.0)

    @property
    def rate(self) -> float:
        """Return the recent throughput in NFE/s."""
        return self.told_rate if self.meter is None else self.meter.rate

    @property
    def left_s(self) -> float | None:
        """Return the seconds until the end at the current rate; None where there is no rate yet."""
        rate = self.rate
        left = max(0.0, self.planned - self.nfe) / rate if rate > 0 else None
        if left is None or self.seconds is None:
            return left
        return min(left, max(0.0, self.begun + self.seconds - time.monotonic()))


@dataclass
class Outcome:
    """The end of a run.

    Attributes:
        status: done, out of time, interrupted, or failed: it could not continue because of ``error``.
        errors: of failed searches, by search id.
        seconds, busy_s: generating time, and the same weighted by the busy share of the generators.
        infos: of the loaded models, by label.
        models: their descriptions for ``study.json``, where other drivers loaded them.
    """

    status: str = "done"
    error: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    busy_s: float = 0.0
    infos: dict[str, ModelInfo] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)


class Runner:
    """Runs searches of a study.

    Args:
        study: the study.
        folder: its run folder.
        tasks: the searches to run; those that have a journal are resumed.
        failed: ids of searches among them that failed before: their failed trials are retried.
        open_pool: opens the pool of a model.
        generators: number of generators in a pool.
        batch: network rows of a generator's batch.
        tick: called a few times per second with the progress.
        merge: called from time to time to update the files of the folder.
        finished: called with each finished search.
    """

    def __init__(
        self,
        study: Study,
        folder: RunFolder,
        tasks: Sequence[Task],
        failed: set[str],
        open_pool: OpenPool,
        *,
        generators: int = 1,
        batch: int = 16,
        tick: Callable[[Progress], None] = lambda progress: None,
        merge: Callable[[], object] = lambda: None,
        finished: Callable[[Task, SearchResult], object] = lambda task, result: None,
    ):
        self.study, self.folder, self.tasks, self.failed = study, folder, tasks, failed
        self.progress = Progress(len(tasks), planned=sum(task.cost.nfe or 0.0 for task in tasks))
        self.outcome = Outcome()
        self._open_pool, self._generators = open_pool, generators
        self._tick, self._finished = tick, finished
        self._most = at_once(generators, batch)
        self._at_once = study.at_once or self._most
        self._prices: dict[str, float] = {}
        self._writer = Writer(folder, columns_of(study.metrics), study.keep, merge)

    def run(self) -> Outcome:
        """Run all searches, model by model. Ctrl-C and SIGTERM stop it early and cleanly."""
        spare = max(1, (len(os.sched_getaffinity(0)) - self._generators) // 2)
        judges = Judges(self.study.metrics, self.study.judged, spare)
        held_out = [name for name in self.study.metrics if registry.metric_class(name) is None]
        by_model = {m.label: tasks for m in self.study.models if (tasks := [t for t in self.tasks if t.model == m])}
        shares = dict(zip(by_model, time_shares(self.study.seconds, len(by_model)), strict=True))
        try:
            with judges, terminable():
                for label, tasks in by_model.items():
                    model = tasks[0].model
                    self.progress.model = label
                    with self._open_pool(model, [model.verifier, *held_out]) as pool:
                        self.outcome.infos[model.label] = pool.info
                        meter = self.progress.meter = Meter(pool, self._generators)
                        try:
                            asyncio.run(self._model(tasks, meter, judges, shares[label]))
                        finally:
                            self.outcome.seconds += meter.seconds
                            self.outcome.busy_s += meter.seconds * (meter.busy or 0.0)
        except (KeyboardInterrupt, asyncio.CancelledError):
            self.outcome.status = "interrupted"
        except (PoolClosed, JournalError) as error:
            self.outcome.status, self.outcome.error = "failed", str(error)
        finally:
            self._writer.close()
        return self.outcome

    async def _model(self, tasks: Sequence[Task], meter: Meter, judges: Judges, seconds: float | None) -> None:
        self._price(tasks, meter.info)
        self.progress.begun, self.progress.seconds = time.monotonic(), seconds
        # A time limit may end the run anywhere: then whole prompts matter, not a short end.
        waiting = iter(longest_first(tasks, self._at_once) if seconds is None else tasks)

        gate = asyncio.Lock()

        async def lane() -> None:
            while True:
                async with gate:  # one after the other: each takes its part of the room first
                    while meter.waiting >= self._most:
                        await asyncio.sleep(ROOM_S)
                    if (task := next(waiting, None)) is None:
                        return
                    begun = asyncio.Event()
                    search = asyncio.create_task(self._search(task, meter, judges, begun.set))
                    search.add_done_callback(lambda _, begun=begun: begun.set())  # type: ignore[misc]
                    try:
                        await begun.wait()
                    except asyncio.CancelledError:
                        search.cancel()
                        await asyncio.wait({search})
                        raise
                await search

        async def report() -> None:
            while True:
                self._tick(self.progress)
                await asyncio.sleep(0.25)

        reporter = asyncio.create_task(report())
        lanes = [asyncio.create_task(lane()) for _ in range(min(self._at_once, len(tasks)))]
        try:
            ended, running = await asyncio.wait(lanes, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for ended_lane in ended:
                ended_lane.result()  # raises what ended it
            if running:
                self.outcome.status = "out of time"
        finally:
            reporter.cancel()
            for other in lanes:
                other.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
            self._tick(self.progress)

    def _price(self, tasks: Sequence[Task], info: ModelInfo) -> None:
        """Replace the estimated costs by those of the loaded model."""
        for task in tasks:
            sampling = Sampling.of(info, task.prompt.text, **task.model.sampling)
            costs = Costs.of(info, sampling, image=task.image, prices=task.model.prices(info))
            price = estimate(task.entry, task.limit, costs).nfe or 0.0
            self.progress.planned += price - (task.cost.nfe or 0.0)
            self._prices[task.search_id] = price

    async def _search(self, task: Task, meter: Meter, judges: Judges, begun: Callable[[], object]) -> None:
        """Run one search, from its journal if it has one, and write its rows. Its failure does not stop the others.

        Args:
            begun: called when its first trials are requested.
        """
        try:
            with self.folder.journal(task, retry=task.search_id in self.failed) as journal:
                await judges.probe(meter.pool, task.prompt.text)
                result, error = await self._searched(task, meter, journal, begun)
                if meter.closed is not None:
                    raise meter.closed  # the search did not fail: it is unfinished
                self.progress.planned += result.ledger.nfe - self._prices[task.search_id]
                if error is None:
                    await judges.judge(result, meter, task.entry.nested)
                lost = sum(LostWork.MARK in trial.error for trial in result.trials if trial.status == "failed")
                await self._writer.write(task, result, over=error is None and not lost)
                self.progress.writing = self._writer.seconds
                if error is not None:
                    raise error
                if lost:
                    raise Failure(f"{lost} of its {len(result.trials)} trials were lost with their workers")
        except (PoolClosed, JournalError):
            raise
        except Exception as error:
            self.progress.failed += 1
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.outcome.errors[task.search_id] = lines[0]
            return
        self.progress.finished += 1
        self._finished(task, result)
        if result.score is not None:
            self.progress.scores.setdefault(task.entry.label, []).append(result.score)

    async def _searched(
        self, task: Task, meter: Meter, journal: Journal, begun: Callable[[], object]
    ) -> tuple[SearchResult, SearchFailed | None]:
        study = self.study

        def on_event(event: Event) -> None:
            begun()
            if isinstance(event, TrialFinished):
                self.progress.nfe += event.record.nfe

        try:
            result = await asearch(
                task.prompt.text,
                strategy=task.entry.strategy,
                verifier=task.model.verifier,
                rewriter=study.rewriter,
                nfe=task.limit.nfe,
                images=task.limit.images,
                flops=task.limit.flops,
                as_=task.model.priced_as,
                seed=task.search_seed,
                pool=meter,
                **task.model.sampling,
                image=task.prompt.image if task.image else None,
                restart=True,
                workers=study.workers,
                on_event=on_event,
                run_id=study.name,
                prompt_id=task.prompt.id,
                label=task.entry.label,
                search_id=task.search_id,
                journal=journal,
            )
        except SearchFailed as failure:
            return failure.result, failure
        return result, None


def at_once(generators: int, batch: int) -> int:
    """Return how many searches keep the generators busy, even if each has only one trial in flight.

    They fill all batches, at two rows for a guided step, and as many again wait for a score or are being written.
    """
    return max(8, generators * batch)


def time_shares(seconds: float | None, models: int) -> list[float | None]:
    """Return the time limits of models: the first has half of the time, the others share the other half."""
    if seconds is None or models < 2:
        return [seconds] * models
    return [seconds / 2, *[seconds / 2 / (models - 1)] * (models - 1)]
