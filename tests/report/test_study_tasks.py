"""Studies of GenEval's tasks are reported by kind of task."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from lotts_search.cli.write_report import Wanted, write
from lotts_search.core.trial_table import TrialRecord, to_table, write_parquet
from lotts_search.curves import load
from lotts_search.curves.intervals import share_interval
from lotts_search.report.study_tasks import task_lines

RIGHT = {
    "a photo of two cats": (1, 0), "a photo of three dogs": (1, 0), "a photo of four cups": (0, 0),
    "a photo of a cat": (1, 1), "a photo of a cat above a dog": (0, 1),
}  # fmt: skip
"""Whether the images of the strategies a and b are right."""


def table(path: Path, more: str | None = None, metric: str = "geneval") -> Path:
    records = [
        TrialRecord(
            "run", f"{label}{prompt}", prompt, prompt, "m", "lotts", "{}", 0, "0", None, "sample", label=label,
            budget_images=1, nfe=10, images=1, score=0.5, image="i", metrics={metric: float(right)},
        )
        for prompt, both in {**RIGHT, **({more: (1, 1)} if more else {})}.items()
        for label, right in zip("ab", both, strict=True)
    ]  # fmt: skip
    write_parquet(to_table(records), path / "trials.parquet")
    return path / "trials.parquet"


def test_each_kind_has_its_share(tmp_path: Path) -> None:
    results = load(table(tmp_path))
    a, b = task_lines(results, results.setups)
    assert a.prompts == b.prompts == {"single_object": 1, "counting": 3, "position": 1}
    assert {tag: share.mean for tag, share in a.shares.items()} == pytest.approx(
        {"single_object": 1, "counting": 2 / 3, "position": 0}
    )
    assert a.shares["counting"] == share_interval(2 / 3, 3)
    assert (a.mean, b.mean) == pytest.approx(((1 + 2 / 3) / 3, 2 / 3)), "kinds count alike, whatever their prompts"


@pytest.mark.parametrize("other", [{"more": "a red circle"}, {"metric": "oracle"}])
def test_other_studies_have_none(tmp_path: Path, other: dict[str, str]) -> None:
    results = load(table(tmp_path, **other))
    assert task_lines(results, results.setups) == []
    write(Wanted([tmp_path / "trials.parquet"], tmp_path / "out", figures=False), quiet())
    assert not (tmp_path / "out" / "tasks.csv").exists()
    assert "Right images by kind of task" not in (tmp_path / "out" / "index.html").read_text()


def test_the_report_has_the_table(tmp_path: Path) -> None:
    write(Wanted([table(tmp_path)], tmp_path / "out", figures=False), quiet())
    rows = list(csv.DictReader((tmp_path / "out" / "tasks.csv").open()))
    assert [(row["label"], row["task"], row["prompts"]) for row in rows[:3]] == [
        ("a", "single_object", "1"), ("a", "counting", "3"), ("a", "position", "1")
    ]  # fmt: skip
    page = (tmp_path / "out" / "index.html").read_text()
    section = page[page.index("Right images by kind of task") :]
    assert re.search(r"counting \(3 prompts\)", section) and "0.556" in section and "0.667" in section


def quiet():  # type: ignore[no-untyped-def]
    from rich.console import Console

    return Console(quiet=True)
