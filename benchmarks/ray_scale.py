"""What hundreds of generators cost one driver on a real Ray, in real time.

    python benchmarks/ray_scale.py [--trials 20000] [--processes 16] [--each 16]

A study runs as with `lotts-search study`, on a private Ray with 16 actors. The engine of each stands for 16 generators: it waits as long as SDXL takes
on an H100 (40 ms a row, batches of 16 rows, 50 guided steps), and answers with small images. Printed are, for each tenth of the study, trials, the
share of the time in which the generators are busy, and CPU milliseconds a trial of the driver (with Ray's threads in it), of Ray's servers
and of the actors; memory is the driver's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from scale import YAML
from simulated import FakeEngine, Speed, resident_mb, used_by_children

from lotts_search.actors.ray_pool import RayPool
from lotts_search.study.conduct import conduct
from lotts_search.study.folder import RunFolder
from lotts_search.study.read import read_study
from lotts_search.study.runner import Progress
from lotts_search.study.searches import tasks_of
from lotts_search.study.spec import ModelEntry
from lotts_search.study.state import standing
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Check, Result, Usage, Work

SPEED = Speed(side=64)
PAUSE_S = 0.05


class Generators:
    """An engine that stands for several; a piece of work goes to that with the fewest."""

    def __init__(self, count: int, seconds: float):
        self.engines = [FakeEngine(SPEED, seconds) for _ in range(count)]
        self.due = [0.0] * count
        self.took = [0.0] * count

    def submit(self, work: Work) -> Future[Result]:
        future: Future[Result] = Future()
        if isinstance(work, Check):
            future.set_result(Result(Usage(flops=1e12)))
        else:
            least = min(self.engines, key=lambda engine: len(engine.waiting) + len(engine.running))
            least.add(work, future, time.time())
        return future

    def tick(self) -> bool:
        """End and begin the steps whose time has come, and wait a little."""
        now = time.monotonic()
        busy = False
        for number, engine in enumerate(self.engines):
            if self.took[number] and now >= self.due[number]:
                engine.end(self.took[number], time.time(), "simulated")
                self.took[number] = 0.0
            if not self.took[number] and (took := engine.start()):
                # Late steps begin when they should have begun: what this process needs is not what a GPU needs.
                self.due[number] = max(self.due[number], now - took) + took
                self.took[number] = took
            busy = busy or bool(self.took[number])
        if busy:
            time.sleep(PAUSE_S)
        return busy


def make_engine(model: str, options: dict[str, Any], batch: int, threads: int) -> tuple[Generators, ModelInfo]:
    return Generators(int(options["each"]), SPEED.row_s), SPEED.info


def make_scorer(verifier: str, batch: int, threads: int) -> tuple[Generators, str]:
    return Generators(4, SPEED.score_s), verifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=16, help="actors")
    parser.add_argument("--each", type=int, default=16, help="generators that an actor stands for")
    parser.add_argument("--images", type=int, default=9, help="of each search")
    options = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    generators = options.processes * options.each
    marks: list[dict[str, float]] = []
    done = {"trials": 0, "device_s": 0.0}

    class Counted(RayPool):
        def submit(self, work: Work) -> Future[Result]:
            future = super().submit(work)
            future.add_done_callback(count)
            return future

    def count(future: Future[Result]) -> None:
        if not future.cancelled() and future.exception() is None:
            result = future.result()
            done["trials"] += 1
            done["device_s"] += 0.0 if result.score is not None else result.usage.device_s

    def tick(progress: Progress) -> None:
        if len(marks) < 10 * done["trials"] / options.trials:
            used = {"driver": time.process_time(), **used_by_children()}
            marks.append({**done, **used, "time": time.monotonic(), "memory": resident_mb()})

    @contextmanager
    def opened(model: ModelEntry, verifiers: Sequence[str]) -> Iterator[Pool]:
        with Counted(
            "shapes-sd", verifiers, options.processes, SPEED.batch * options.each,
            backbone_options={"each": options.each}, engine="ray_scale:make_engine", scorer="ray_scale:make_scorer",
        ) as pool:  # fmt: skip
            yield pool

    with tempfile.TemporaryDirectory() as name:
        yaml = Path(name) / "study.yaml"
        searches = round(options.trials / options.images / 2)
        prompts = ", ".join(f"prompt {number}" for number in range(-(-searches // 20)))
        fields = {"strategies": "best-of-n, lotts", "prompts": prompts, "seeds": 10, "images": options.images}
        yaml.write_text(YAML.format(**fields, keep="best"))
        asked = read_study(yaml)
        tasks = tasks_of(asked)
        run = RunFolder(Path(name) / "run")
        found = conduct(
            asked, run, tasks, standing(run, tasks), opened, generators=generators, batch=SPEED.batch, tick=tick
        )
        run.close()
    assert found.outcome.status == "done" and not found.outcome.errors, found.outcome
    print(f"{len(tasks)} searches, {done['trials']} trials, {options.processes} actors for {generators} generators")
    print("  trials   seconds    busy   CPU ms a trial: driver    Ray  actors   memory MB")
    inner = [mark for mark in marks if 0.2 * done["trials"] <= mark["trials"] <= 0.8 * done["trials"]]
    for before, after in [*pairwise(marks), (inner[0], inner[-1])]:
        trials, took = after["trials"] - before["trials"], after["time"] - before["time"]
        if not trials:
            continue
        busy = (after["device_s"] - before["device_s"]) / generators / took
        cpu = [1e3 * (after[kind] - before[kind]) / trials for kind in ("driver", "ray", "actors")]
        print(
            f"{after['trials']:8.0f} {took:9.1f} {busy:7.3f} {cpu[0]:24.2f} {cpu[1]:6.2f} {cpu[2]:7.2f} {after['memory']:11.0f}"
        )
    print("The last line is from 20 to 80 % of the trials. An image counts as busy time when it is done.")


if __name__ == "__main__":
    main()
