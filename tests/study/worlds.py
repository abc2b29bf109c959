"""Studies on the analytic model: a folder that stands for it, and its pool."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotts_search.study.conduct import Conducted, conduct
from lotts_search.study.folder import RunFolder
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.study.spec import ModelEntry
from lotts_search.study.state import Standing, standing
from lotts_search.testing import AnalyticPool, analytic_info
from lotts_search.work.pool import Pool

MEASURED = ["device_s", "queue_s", "started", "finished", "node", "actor", "attempts"]
"""Columns that depend on when and where a trial ran."""

YAML = """\
model: ./analytic
strategies:
  - best-of-n
  - strategy: lotts
    grid: {refinements: [1, 2]}
prompts: [red star, blue ring, green cross]
budgets: {nfe: [24, 40]}
"""


def world(folder: Path, yaml: str = YAML) -> Path:
    """A folder with ``study.yaml`` and a model folder that says what the analytic model costs."""
    defaults = analytic_info().defaults
    model = folder / "analytic"
    model.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "steps": defaults.steps,
        "guidance": defaults.guidance,
        "t0": defaults.t0,
        "integrate": 1,
    }
    settings["mask"] = {"kind": "error-contrast", "levels": [400], "draws": 1}
    settings["verifier"] = "shapes-reward"
    (model / "lotts.json").write_text(json.dumps(settings))
    (model / "model_index.json").write_text(json.dumps({"_class_name": "AnalyticPipeline"}))
    path = folder / "study.yaml"
    path.write_text(yaml.replace("./analytic", str(model)))
    return path


def opening(pool: Pool) -> Callable[[ModelEntry, Sequence[str]], AbstractContextManager[Pool]]:
    """What opens ``pool`` for every model."""

    @contextmanager
    def opened(model: ModelEntry, verifiers: Sequence[str]) -> Iterator[Pool]:
        yield pool

    return opened


def run(path: Path, out: Path, pool: Pool | None = None, **options: Any) -> tuple[Conducted, Standing]:
    """Run a study on a pool (an analytic one by default)."""
    study = read_study(path)
    tasks = tasks_of(study)
    folder = RunFolder(out)
    try:
        stand = standing(folder, tasks, study.metrics)
        return conduct(study, folder, tasks, stand, opening(pool or AnalyticPool()), **options), stand
    finally:
        folder.close()


def table(out: Path) -> pa.Table:
    """The trial table."""
    return pq.read_table(out / "trials.parquet")


def lasting(out: Path) -> list[dict[str, Any]]:
    """Its rows without what is measured."""
    return table(out).drop_columns(MEASURED).to_pylist()


def files(out: Path) -> set[str]:
    """All files of a run folder, apart from the lock."""
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != "lock"}


def copy(out: Path, to: Path) -> Path:
    """A copy of a run folder."""
    return Path(shutil.copytree(out, to))
