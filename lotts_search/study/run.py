"""Running a study: many searches at once on one pool after the other, each into the run folder as it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from lotts_search.api import asearch
from lotts_search.core.budget import Costs
from lotts_search.core.journal import Journal, JournalError
from lotts_search.core.result import SearchFailed, SearchResult
from lotts_search.core.trial_table import TrialRecord
from lotts_search.errors import PoolClosed
from lotts_search.study.folder import RunFolder
from lotts_search.study.keep import keep
from lotts_search.study.metered_pool import Meter
from lotts_search.study.metrics import Judges, columns_of
from lotts_search.study.plan import Task, estimate, longest_first
from lotts_search.study.spec import ORACLE, ModelEntry, Study
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Sampling

MERGE_S = 60.0
"""Seconds between updates of ``trials.parquet`` while a study runs, and :data:`MERGE_TIMES` as long as one takes."""
MERGE_TIMES = 100.0

OpenPool = Callable[[ModelEntry, Sequence[str]], AbstractContextManager[Pool]]
"""Opens a pool for a model with verifiers."""


@dataclass
class Progress:
    """How far a study is.

    Attributes:
        total, finished, failed: searches; ``total`` counts those that this run has to do.
        nfe: NFE of trials that are done, those of journals included; ``planned`` of all that this run has to do.
        scores: of finished searches, by label.
        meter: of the pool at work.
        model: the label of the model at work.
        writing: seconds spent on keeping what finished searches leave.
    """

    total: int = 0
    finished: int = 0
    failed: int = 0
    nfe: float = 0.0
    planned: float = 0.0
    scores: dict[str, list[float]] = field(default_factory=dict)
    meter: Meter | None = None
    model: str = ""
    writing: float = 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the present rate; None where there is none yet."""
        rate = self.meter.rate if self.meter is not None else 0.0
        return max(0.0, self.planned - self.nfe) / rate if rate > 0 else None


@dataclass
class Outcome:
    """How a run of a study ended.

    Attributes:
        status: done, interrupted, or failed, when it could not go on because of ``error``.
        errors: of searches that failed, by search id.
        seconds, busy_s: time at work, and that time weighted by how busy the generators were.
        infos: of the models that were loaded, by label.
    """

    status: str = "done"
    error: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    busy_s: float = 0.0
    infos: dict[str, ModelInfo] = field(default_factory=dict)

    @property
    def busy(self) -> float | None:
        return self.busy_s / self.seconds if self.seconds else None


class Runner:
    """Runs searches of a study.

    Args:
        study: what is run.
        folder: where to.
        tasks: the searches to run; those that have a journal are resumed.
        failed: among them those that failed before: their failed trials are tried again.
        open_pool: opens the pool of a model.
        generators: how many a pool has.
        batch: network rows of a generator's batch.
        tick: called a few times a second with the progress.
        merge: called now and then to bring the files of the folder up to date.
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
    ):
        self.study, self.folder, self.tasks, self.failed = study, folder, tasks, failed
        self.progress = Progress(len(tasks), planned=sum(task.nfe or 0.0 for task in tasks))
        self.outcome = Outcome()
        self._open_pool, self._generators, self._tick, self._merge = open_pool, generators, tick, merge
        self._at_once = study.at_once or at_once(generators, batch)
        self._columns = columns_of(study.metrics)
        self._merged = time.monotonic()
        self._pause = MERGE_S
        self._prices: dict[str, float] = {}
        self._writer = ThreadPoolExecutor(1, "lotts-search writer")

    def run(self) -> Outcome:
        """Run all searches, model by model. Ctrl-C and SIGTERM end it early, and cleanly."""
        spare = max(1, (len(os.sched_getaffinity(0)) - self._generators) // 2)
        judges = Judges(self.study.metrics, self.study.judged, spare)
        verifiers = [self.study.guide, *(name for name in self.study.metrics if name != ORACLE)]
        try:
            with judges, terminable():
                for model in self.study.models:
                    tasks = [task for task in self.tasks if task.model == model]
                    if not tasks:
                        continue
                    self.progress.model = model.label
                    with self._open_pool(model, verifiers) as pool:
                        self.outcome.infos[model.label] = pool.info
                        meter = self.progress.meter = Meter(pool, self._generators)
                        try:
                            asyncio.run(self._model(tasks, meter, judges))
                        finally:
                            self.outcome.seconds += meter.seconds
                            self.outcome.busy_s += meter.seconds * (meter.busy or 0.0)
        except (KeyboardInterrupt, asyncio.CancelledError):
            self.outcome.status = "interrupted"
        except (PoolClosed, JournalError) as error:
            self.outcome.status, self.outcome.error = "failed", str(error)
        finally:
            self._writer.shutdown()
        return self.outcome

    async def _model(self, tasks: Sequence[Task], meter: Meter, judges: Judges) -> None:
        self._price(tasks, meter.info)
        waiting = iter(longest_first(tasks, self._at_once))

        async def lane() -> None:
            for task in waiting:
                await self._search(task, meter, judges)

        async def report() -> None:
            while True:
                self._tick(self.progress)
                await asyncio.sleep(0.25)

        reporter = asyncio.create_task(report())
        lanes = [asyncio.create_task(lane()) for _ in range(min(self._at_once, len(tasks)))]
        try:
            await asyncio.gather(*lanes)
        finally:
            reporter.cancel()
            for other in lanes:
                other.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
            self._tick(self.progress)

    def _price(self, tasks: Sequence[Task], info: ModelInfo) -> None:
        """Now that the model is loaded, what its searches cost is known for sure."""
        for task in tasks:
            costs = Costs.of(info, Sampling.of(info, task.prompt.text, **task.model.sampling))
            price = estimate(task.entrant, task.limit, costs)[0] or 0.0
            self.progress.planned += price - (task.nfe or 0.0)
            self._prices[task.search_id] = price

    async def _search(self, task: Task, meter: Meter, judges: Judges) -> None:
        """One search, from its journal where it has one, to its rows in the folder. What fails it ends no other."""
        try:
            with self.folder.journal(task, retry=task.search_id in self.failed) as journal:
                result, error = await self._searched(task, meter, journal)
                if meter.closed is not None:
                    raise meter.closed  # what the search lacks is not its own fault: it is not finished
                self.progress.planned += result.ledger.nfe - self._prices[task.search_id]
                if error is None:
                    await judges.judge(result, meter, task.entrant.nested)
                await self._write(lambda: keep(self.folder, task, result, self._columns, self.study.keep))
                if error is not None:
                    raise error
                journal.remove()
        except (PoolClosed, JournalError):
            raise
        except Exception as error:
            self.progress.failed += 1
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.outcome.errors[task.search_id] = lines[0]
            return
        self.progress.finished += 1
        if result.score is not None:
            self.progress.scores.setdefault(task.entrant.label, []).append(result.score)

    async def _searched(self, task: Task, meter: Meter, journal: Journal) -> tuple[SearchResult, SearchFailed | None]:
        study, sampling = self.study, task.model.sampling
        try:
            result = await asearch(
                task.prompt.text,
                strategy=task.entrant.strategy,
                verifier=study.guide,
                rewriter=study.rewriter,
                nfe=task.limit.nfe,
                images=task.limit.images,
                seed=task.search_seed,
                pool=meter,
                steps=sampling.get("steps"),
                guidance=sampling.get("guidance"),
                negative=sampling.get("negative", ""),
                eta=sampling.get("eta"),
                solver=sampling.get("solver"),
                image=task.prompt.image if task.image else None,
                workers=study.workers,
                on_trial=self._count,
                run_id=study.name,
                prompt_id=task.prompt.id,
                label=task.entrant.label,
                search_id=task.search_id,
                journal=journal,
            )
        except SearchFailed as failure:
            return failure.result, failure
        return result, None

    def _count(self, trial: TrialRecord) -> None:
        self.progress.nfe += trial.nfe

    async def _write(self, action: Callable[[], object]) -> None:
        """Do something in the one thread that writes to the folder; now and then bring its files up to date."""

        def write() -> None:
            began = time.monotonic()
            action()
            if began - self._merged > self._pause:
                self._merge()
                self._merged = time.monotonic()
                self._pause = max(MERGE_S, MERGE_TIMES * (self._merged - began))
            self.progress.writing += time.monotonic() - began

        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, write)
        except OSError as error:
            raise JournalError(f"cannot write to {self.folder.path}: {error}") from error


def at_once(generators: int, batch: int) -> int:
    """Searches that keep so many generators busy, though each may have but one trial to do at a time: all places of
    their batches, guided at two rows each, and as many again that wait for a score or are being written."""
    return max(8, generators * batch)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end a study as Ctrl-C does: cluster managers send it before they kill."""

    def end(*_: object) -> None:
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        else:  # a script's background job ignores SIGINT, and with it asyncio's own handler is not there
            raise KeyboardInterrupt

    before: Any = None
    with suppress(ValueError):  # not in the main thread: whoever runs us has the signals
        before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
