"""``--flops`` and ``--as``: budgets of FLOPs on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from lotts_search.testing import AnalyticPool
from lotts_search.work.prices import published
from tests.cli.test_begin_and_end import call, use
from tests.study.worlds import world

SDXL = published("sdxl")


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["--flops", "1e5"], 6),  # of 8 · 2000 + 150 + 7
        (["--flops", "250e12", "--as", "sdxl"], 2),
        (["--flops", "250e12", "--as", "sdxl", "--images", "1"], 1),
    ],
)
def test_a_search_stays_within_its_flops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], images: int
) -> None:
    use(monkeypatch, AnalyticPool())
    common = ["generate", "red star", "--strategy", "best-of-n", *words, "--out", tmp_path / "out"]
    assert call(*common, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == images and said["flops"] <= float(words[1])
    rows = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    assert sum(row["flops"] for row in rows) == said["flops"]
    assert {row["budget_flops"] for row in rows} == {float(words[1])}
    if "--as" in words:
        assert said["flops"] == images * (16 * SDXL.row + SDXL.decode + SDXL.score)
        assert "--as sdxl" in said["command"]
        assert call(*common) == 0
        captured = capsys.readouterr()
        assert "FLOPs as on sdxl" in captured.err + captured.out and "TFLOP as sdxl" in captured.out


def test_wrong_values_are_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, AssertionError("nothing is loaded"))
    assert call("generate", "red star", "--flops", "1e5", "--as", "sdx") == 2
    assert "sdxl" in capsys.readouterr().err
    assert call("generate", "red star", "--flops", "-1") == 2
    assert "a budget's flops must be a number of 0 or more" in capsys.readouterr().err


def test_settings_are_tuned_under_flops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, AnalyticPool())
    world(tmp_path)
    (tmp_path / "prompts.txt").write_text("red star\nblue ring\n")
    words = ["tune", "svdd", "--model", tmp_path / "analytic", "--prompts", tmp_path / "prompts.txt", "--count", 2]
    assert call(*words, "--trials", 2, "--flops", "4e14", "--as", "sd21", "--local", "--out", tmp_path / "run") == 0
    said = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert (said["budgets"], said["as"]) == ([{"flops": 4e14}], "sd21")
    rows = pq.read_table(tmp_path / "run" / "trials.parquet").to_pylist()
    assert {row["budget_flops"] for row in rows} == {4e14} and {row["budget_nfe"] for row in rows} == {None}
