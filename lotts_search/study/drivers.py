"""Several drivers for one study, where one process cannot keep up with the generators.

Each driver is a process of its own, with its share of the generators, a pool, journals and a run folder in ``drivers/``, and
runs the open searches whose id falls to it. The study's own folder takes over what they have, at the end and before the next
run, whatever the number of drivers is then.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lotts_search.errors import BadInput
from lotts_search.study.folder import DRIVERS, RunFolder
from lotts_search.study.keep import MERGE_S
from lotts_search.study.runner import Outcome, Progress
from lotts_search.study.searches import Task
from lotts_search.study.signals import terminable
from lotts_search.study.watch import read, together

TASKS = "driver.json"
TICK_S = 0.25
SEVERITY = ("done", "out of time", "interrupted", "failed")

Command = Callable[[Path, int], Sequence[str]]
"""Returns the command line of a driver with a folder and a number of generators."""


def driver_of(search_id: str, drivers: int) -> int:
    """Return the number of the driver that runs a search."""
    return int(search_id, 16) % drivers


def shares(generators: int, drivers: int) -> list[int]:
    """Divide the generators among drivers.

    Raises:
        BadInput: there are fewer generators than drivers.
    """
    if not 1 <= drivers <= generators:
        raise BadInput(f"each driver needs a generator: --drivers {drivers} with {generators} generators")
    return [generators // drivers + (number < generators % drivers) for number in range(drivers)]


def given(folder: RunFolder, tasks: Sequence[Task]) -> tuple[list[Task], set[str]]:
    """Return the tasks that a driver with this folder has to run, and the ids of those that failed before.

    Raises:
        BadInput: it is not the folder of a driver.
    """
    try:
        said = json.loads((folder.path / TASKS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder.path} is not the folder of a driver") from error
    wanted = set(said["searches"])
    return [task for task in tasks if task.search_id in wanted], set(said["failed"])


def gather(folder: RunFolder, tasks: Sequence[Task], run_id: str) -> None:
    """Take over what earlier drivers have: rows, images, and the journals of unfinished searches.

    Raises:
        BadInput: one of them still runs.
    """
    paths = sorted((folder.path / DRIVERS).glob("*"))
    for path in paths:
        part = RunFolder(path)
        try:
            part.merge(tasks, run_id)
        finally:
            part.close()
    if not paths:
        return
    folder.merge(tasks, run_id)  # every row is in one of the files at all times
    for path in paths:
        for kind, pattern in (("images", "*.png"), ("journal", "*.journal")):
            for file in (path / kind).glob(pattern):
                os.replace(file, folder.path / kind / file.name)
        shutil.rmtree(path)
    (folder.path / DRIVERS).rmdir()


class Drivers:
    """Runs the open searches of a study by several drivers; stands in for :class:`~lotts_search.study.runner.Runner`.

    Args:
        folder, tasks, all_tasks: of the study; ``tasks`` are the open ones.
        failed: ids of those that failed before.
        generators: generators of each driver.
        command: starts a driver; it ends by itself, or on SIGINT as a study does.
        tick, merge: as for the runner.
    """

    def __init__(
        self, folder: RunFolder, run_id: str, tasks: Sequence[Task], all_tasks: Sequence[Task], failed: set[str],
        generators: Sequence[int], command: Command, *, tick: Callable[[Progress], None], merge: Callable[[], object],
    ) -> None:  # fmt: skip
        self.folder, self.tasks, self.failed = folder, tasks, failed
        self.outcome = Outcome()
        self.progress = Progress(len(tasks), planned=sum(task.cost.nfe or 0.0 for task in tasks))
        self._run_id, self._all, self._generators, self._command = run_id, all_tasks, generators, command
        self._tick, self._merge = tick, merge

    def run(self) -> Outcome:
        """Run all searches. Ctrl-C and SIGTERM stop all drivers early and cleanly."""
        folders = self._distribute()
        running: list[subprocess.Popen[bytes]] = []
        try:
            with terminable():
                for path, generators in zip(folders, self._generators, strict=True):
                    with (path / "log").open("wb") as log:
                        running.append(
                            subprocess.Popen(
                                self._command(path, generators), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True,  # the signals of a terminal reach it through this process alone
                            )
                        )  # fmt: skip
                self._follow(folders, running)
        except KeyboardInterrupt:
            self.outcome.status = "interrupted"
        finally:
            for process in running:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            for process in running:
                process.wait()
            self._end(folders, [process.returncode for process in running])
        return self.outcome

    def _distribute(self) -> list[Path]:
        """Give each driver a folder with its tasks and their journals."""
        count = len(self._generators)
        folders = [self.folder.path / DRIVERS / str(number) for number in range(count)]
        begun = self.folder.begun()
        for number, path in enumerate(folders):
            part = RunFolder(path)
            mine = [task.search_id for task in self.tasks if driver_of(task.search_id, count) == number]
            said = {"searches": mine, "failed": [name for name in mine if name in self.failed]}
            (path / TASKS).write_text(json.dumps(said), encoding="utf-8")
            for name in begun.intersection(mine):
                os.replace(self.folder.journals / f"{name}.journal", part.journals / f"{name}.journal")
            part.close()
        return folders

    def _follow(self, folders: Sequence[Path], running: Sequence[subprocess.Popen[bytes]]) -> None:
        merged = time.monotonic()
        while any(process.poll() is None for process in running):
            time.sleep(TICK_S)
            now = together(snapshot for path in folders if (snapshot := read(path)) is not None)
            if now is not None:
                self.progress.finished, self.progress.failed = now.finished, now.failed
                self.progress.nfe, self.progress.planned, self.progress.told_rate = (
                    now.nfe,
                    now.nfe + now.left,
                    now.rate,
                )
            self._tick(self.progress)
            if time.monotonic() - merged > MERGE_S:
                self._merge()
                merged = time.monotonic()

    def _end(self, folders: Sequence[Path], codes: Sequence[int]) -> None:
        """Sum up what the drivers did, and take it over."""
        found = [_study(path) for path in folders]
        # One that was stopped before it had begun has written nothing.
        broken = "interrupted" if self.outcome.status == "interrupted" else "failed"
        for path, study, code in zip(folders, found, codes, strict=False):
            status = study.get("status", "running")
            if status == "running" or (code and status == "done" and not _failed(study)):
                status = broken
            if SEVERITY.index(status) > SEVERITY.index(self.outcome.status):
                self.outcome.status = status
                self.outcome.error = study.get("error") or ("" if status != "failed" else _last_line(path / "log"))
            self.outcome.errors |= {search["search_id"]: search["error"] for search in _failed(study)}
            self.outcome.models |= {model["label"]: model for model in study.get("models", ()) if model.get("family")}
            self.outcome.seconds = max(self.outcome.seconds, study.get("generating") or 0.0)
        # A driver's share of the time counts as much as its share of the generators.
        total = sum(self._generators)
        self.outcome.busy_s = sum(
            (study.get("busy") or 0.0) * (study.get("generating") or 0.0) * own / total
            for study, own in zip(found, self._generators, strict=False)
        )
        gather(self.folder, self._all, self._run_id)


def _study(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found = json.loads((path / "study.json").read_text(encoding="utf-8"))
    return found


def _failed(study: dict[str, Any]) -> list[dict[str, Any]]:
    return [search for search in study.get("searches", ()) if search["status"] == "failed"]


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "a driver ended without a word"
