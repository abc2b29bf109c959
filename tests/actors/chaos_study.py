"""A program: runs a study of the analytic model on a Ray cluster, with engines that take their time. It writes, as JSON lines, which
actors are ready and how much work was answered, whenever one of these has changed.

    python -m tests.actors.chaos_study STUDY.yaml OUT ADDRESS LOG GENERATORS
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import warnings
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lotts_search.actors.ray_pool import RayPool
from lotts_search.testing.analytic import Mixture, analytic_info, answer
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Result, Work
from tests.study.worlds import run

BATCH = 4
TICK_S = 0.5
"""Seconds of an engine's operation while the file ``slow`` lies beside the study."""
WATCH_S = 0.05


class SlowEngine:
    """Answers up to ``BATCH / 2`` pieces of work at a time, and takes its time for it while a file exists."""

    def __init__(self, slow: Path):
        self._slow = slow
        self._waiting: deque[tuple[Work, Future[Result]]] = deque()

    def submit(self, work: Work) -> Future[Result]:
        future: Future[Result] = Future()
        self._waiting.append((work, future))
        return future

    def tick(self) -> bool:
        now = [self._waiting.popleft() for _ in range(min(BATCH // 2, len(self._waiting)))]
        if now and self._slow.exists():
            time.sleep(TICK_S)
        for work, future in now:
            if future.set_running_or_notify_cancel():
                future.set_result(answer(work, Mixture()))
        return bool(now)


def make_engine(model: str, options: dict[str, Any], batch: int, threads: int) -> tuple[SlowEngine, ModelInfo]:
    return SlowEngine(Path(options["slow"])), analytic_info()


def make_scorer(verifier: str, batch: int, threads: int) -> tuple[SlowEngine, str]:
    return SlowEngine(Path("/nowhere")), verifier


class WatchedPool(RayPool):
    """Writes down which actors are ready and how much work was answered."""

    def __init__(self, log: Path, *arguments: Any, **options: Any):
        self.answered = 0
        super().__init__(*arguments, **options)
        self._log = open(log, "a", buffering=1)  # noqa: SIM115
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, work: Work) -> Future[Result]:
        future = super().submit(work)
        future.add_done_callback(self._count)
        return future

    def _count(self, done: Future[Result]) -> None:
        self.answered += not done.cancelled()

    def _watch(self) -> None:
        last = None
        while not self._closed:
            now = {"answered": self.answered, "actors": {ready.name: ready.pid for ready in self.workers()}}
            if now != last:
                self._log.write(json.dumps({"time": time.time(), **now}) + "\n")
                last = now
            time.sleep(WATCH_S)


def main(yaml: Path, out: Path, address: str, log: Path, generators: int) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    warnings.simplefilter("always")
    with WatchedPool(
        log, "analytic", ["shapes-reward", "tests.actors.fakes:Brightness"], generators, BATCH, address=address,
        backbone_options={"slow": str(yaml.parent / "slow")},
        engine="tests.actors.chaos_study:make_engine", scorer="tests.actors.chaos_study:make_scorer",
    ) as pool:  # fmt: skip
        conducted, _ = run(yaml, out, pool)
    sys.exit(conducted.outcome.error if conducted.outcome.status != "done" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
