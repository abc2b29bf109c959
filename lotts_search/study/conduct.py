"""Running a study into its folder: ``lotts-search study`` without the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lotts_search.core.result import SearchResult
from lotts_search.errors import Failure
from lotts_search.study.collecting import rare_collections
from lotts_search.study.drivers import Command, Drivers
from lotts_search.study.folder import RunFolder
from lotts_search.study.runner import OpenPool, Outcome, Progress, Runner
from lotts_search.study.searches import Task
from lotts_search.study.spec import Study
from lotts_search.study.state import Standing, describe, machine
from lotts_search.study.watch import Snapshot, Watch
from lotts_search.work.batch_sizes import ROWS, Batch, BatchSizes


@dataclass
class Conducted:
    """A finished run of a study: its outcome, and its ``study.json``."""

    outcome: Outcome
    progress: Progress
    study: dict[str, Any]

    @property
    def searches(self) -> list[dict[str, Any]]:
        return list(self.study["searches"])


def conduct(
    study: Study,
    folder: RunFolder,
    tasks: list[Task],
    stand: Standing,
    open_pool: OpenPool,
    *,
    command: str = "",
    generators: int = 1,
    batch: Batch = ROWS,
    device: str = "cpu",
    tick: Callable[[Progress], None] = lambda progress: None,
    finished: Callable[[Task, SearchResult], object] = lambda task, result: None,
    drivers: tuple[Sequence[int], Command] | None = None,
    watched: Callable[[Snapshot], object] = lambda now: None,
) -> Conducted:
    """Run the open searches of a study, and leave its folder complete, however the run ends.

    Args:
        tasks: all its searches.
        stand: their state in the folder.
        command: the command that repeats it, for ``study.json``.
        generators, batch, device: of the pools that ``open_pool`` opens.
        tick: called a few times per second.
        finished: called with each finished search of this process.
        drivers: the generators of each of several drivers, and what starts one; None = this process is the driver.
        watched: called every few seconds with the state of this driver.
    """
    before = folder.study()
    began, clock, sizes = time.time(), time.monotonic(), BatchSizes.of(batch)
    failed = {task.search_id for task in stand.failed}
    for task in stand.done:
        folder.forget(task)

    def update(status: str) -> dict[str, Any]:
        outcome, spent = runner.outcome, time.monotonic() - clock
        generating = float(before.get("generating") or 0.0)
        busy_s = float(before.get("busy") or 0.0) * generating + outcome.busy_s
        generating += outcome.seconds
        now = {
            "command": command,
            "status": status,
            "error": outcome.error,
            "started": before.get("started") or began,
            "finished": None if status == "running" else time.time(),
            "seconds": float(before.get("seconds") or 0.0) + spent,
            "generating": generating,
            "busy": busy_s / generating if generating else None,
            "machine": machine(generators, sizes, device),
        }
        if not stand.todo:  # nothing ran now
            now |= {key: before[key] for key in now.keys() - {"status", "error"} if key in before}
        described = describe(
            study, tasks, folder.merge(tasks, study.name),
            before=before | {"models": [*before.get("models", ()), *outcome.models.values()]},
            now=now, errors=errors | outcome.errors, infos=outcome.infos,
        )  # fmt: skip
        folder.write_study(described)
        return described

    errors = {s["search_id"]: s["error"] for s in before.get("searches", ()) if s["search_id"] in failed}

    def succeeded(task: Task, result: SearchResult) -> None:
        errors.pop(task.search_id, None)
        finished(task, result)

    watch = Watch(folder.path, watched)

    def ticked(progress: Progress) -> None:
        tick(progress)
        if progress.meter is not None:
            watch.write(Snapshot.of(progress, sizes.most))

    def merge() -> None:
        update("running")

    runner: Runner | Drivers
    if drivers is not None and stand.todo:
        runner = Drivers(folder, study.name, stand.todo, tasks, failed, *drivers, tick=ticked, merge=merge)
    else:
        runner = Runner(
            study, folder, stand.todo, failed, open_pool,
            generators=generators, batch=sizes.most, tick=ticked, merge=merge, finished=succeeded,
        )  # fmt: skip
    folder.copy_file(study.path)
    update("running" if stand.todo else "done")
    try:
        with rare_collections():
            outcome = runner.run() if stand.todo else runner.outcome
    except Exception as error:  # such as a model that cannot be loaded
        runner.outcome.status, runner.outcome.error = "failed", (str(error).strip().splitlines() or [repr(error)])[0]
        update("failed")
        raise
    finally:
        watch.close()
    try:
        return Conducted(outcome, runner.progress, update(outcome.status))
    except OSError as error:  # such as a disk too full for the table of trials
        why = f"cannot write to {folder.path}: {error}"
        folder.write_study(folder.study() | {"status": "failed", "error": why, "finished": time.time()})
        raise Failure(f"the study stopped: {why}; what is finished is kept, and the same command resumes it") from error
