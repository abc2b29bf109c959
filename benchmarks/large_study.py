"""Resume and report a study of many trials.

    python benchmarks/large_study.py [--trials 50000] [--folder FOLDER]

A few searches really run on a model with a closed form; their rows, as those of other prompts and seeds, are written through the
writers of the project until there are as many. Then the study is resumed with a tenth of a percent of its searches open, as
``lotts-search study`` does it, and reported, as ``lotts-search report --trees 0`` does it (demand for a million
trials: each in less than 60 s).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from simulated import resident_mb

from lotts_search import search
from lotts_search.cli.write_report import Wanted, write
from lotts_search.study.conduct import conduct
from lotts_search.study.folder import RunFolder
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.study.spec import ModelEntry
from lotts_search.study.state import Standing, describe, standing
from lotts_search.testing import AnalyticPool
from lotts_search.work.pool import Pool

YAML = """\
model: shapes-sd
strategies: [best-of-n, lotts]
prompts: {{texts: [{prompts}]}}
seeds: {seeds}
budgets: {{images: 9}}
images: none
"""
SEEDS = 20
TEMPLATES = 16
PART = 4000
"""Searches between two updates of the table."""


@contextmanager
def analytic(model: ModelEntry, verifiers: Sequence[str]) -> Iterator[Pool]:
    with AnalyticPool() as pool:
        yield pool


def make(folder: Path, trials: int) -> None:
    """Write the study."""
    yaml = folder / "study.yaml"
    made = {
        name: [
            search("red star", pool=AnalyticPool(), strategy=name, images=9, seed=seed).trials
            for seed in range(TEMPLATES)
        ]
        for name in ("best-of-n", "lotts")
    }
    mean = sum(len(rows) for of in made.values() for rows in of) / TEMPLATES
    prompts = max(1, round(trials / mean / SEEDS))
    yaml.write_text(YAML.format(prompts=", ".join(f"red star {number}" for number in range(prompts)), seeds=SEEDS))
    study = read_study(yaml)
    tasks = tasks_of(study)
    run = RunFolder(folder / "run")
    for number, task in enumerate(tasks[: round(len(tasks) * 0.999)]):
        rows = made[task.entry.name][number // 2 % TEMPLATES]
        shift = (number // 2) % 997 / 1e4  # so that no two searches are the same
        fresh = [
            replace(
                row, run_id=study.name, search_id=task.search_id, prompt_id=task.prompt.id, prompt=task.prompt.text,
                model=task.model.label, label=task.entry.label, search_seed=task.search_seed,
                score=None if row.score is None else row.score - shift,
                best_so_far=None if row.best_so_far is None else row.best_so_far - shift,
            )
            for row in rows
        ]  # fmt: skip
        run.add(fresh, [])
        if number % PART == PART - 1:
            run.merge(tasks, study.name)
    now = {"command": "", "status": "interrupted", "error": "", "seconds": 1.0, "busy": 1.0, "generating": 1.0}
    table = run.merge(tasks, study.name)
    run.write_study(describe(study, tasks, table, before={}, now=now, errors={}, infos={}))
    run.close()
    print(f"{len(tasks)} searches, {len(table or ())} trials")


class Watch:
    """Prints how long a part took."""

    def __init__(self, what: str, demand: str = "") -> None:
        self.what, self.demand = what, demand

    def __enter__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print(f"{self.what:30s} {wall:6.1f} s, {cpu:6.1f} s of CPU, {resident_mb():6.0f} MB  {self.demand}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="where the study is or shall be; kept")
    parser.add_argument("--trees", type=int, default=0, help="prompts whose searches the report repeats")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder: Path = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "run").exists():
            with Watch("made"):
                make(folder, options.trials)
        with Watch("resumed and finished", "(demand 60 s)"):
            with Watch("  file read"):
                study = read_study(folder / "study.yaml")
            with Watch("  searches listed"):
                tasks = tasks_of(study)
            run = RunFolder(folder / "run")
            with Watch("  state found"):
                stand: Standing = standing(run, tasks, study.metrics)
            with Watch("  rest run, files written"):
                done = conduct(study, run, tasks, stand, analytic)
            run.close()
        print(f"{stand}; {done.outcome.status}")
        with Watch("reported", "(demand 60 s)"):
            write(Wanted([folder / "run"], trees=options.trees), Console(stderr=True))


if __name__ == "__main__":
    main()
