"""How far a study is, read from its folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from lotts_search.errors import BadInput
from lotts_search.study.folder import RunFolder
from lotts_search.study.status import SILENT_S, status_of
from tests.cli.test_cli import call
from tests.study.worlds import files, run, table, world


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a finished study."""
    run(world(tmp_path), tmp_path / "run", command="lotts-search study study.yaml")
    return tmp_path / "run"


def change(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = out / "study.json"
    study = json.loads(path.read_text())
    change(study)
    path.write_text(json.dumps(study))


def half(study: dict[str, Any]) -> None:
    """As if it still ran, with four searches open, after 50 seconds."""
    study |= {"status": "running", "seconds": 50.0}
    for search in study["searches"][-4:]:
        search |= {"status": "open", "nfe": None}


def test_a_finished_study(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(out)
    found = status_of(out)
    rows = table(out)
    searches = len(pc.unique(rows["search_id"]))
    assert (found.status, found.done, found.failed, found.open) == ("done", searches, 0, 0)
    assert found.nfe == pytest.approx(sum(rows["nfe"].to_pylist()))
    assert call("status", out) == 0
    assert "resume" not in capsys.readouterr().out
    assert files(out) == before, "it only reads"


def test_a_running_study_tells_its_rate_and_the_time_left(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budgets = [search["budget_nfe"] for search in json.loads((out / "study.json").read_text())["searches"][-4:]]
    change(out, half)
    found = status_of(out)
    assert found.status == "running" and found.open == 4
    assert found.rate == pytest.approx(found.nfe / 50)
    assert found.left_s == pytest.approx(sum(budgets) * 50 / found.nfe)
    assert call("status", out) == 0
    printed = capsys.readouterr().out
    assert "running, last written" in printed and "4 open" in printed and "left" in printed
    change(out, lambda study: study["searches"][-1].update(budget_nfe=None))
    assert status_of(out).left_s is None, "the cost of a budget of images is not known here"


def test_a_study_that_was_killed_names_the_command_that_resumes_it(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(out, half)
    journal = out / "journal" / "0123456789abcdef.journal"
    journal.write_bytes(b"")
    past = time.time() - SILENT_S - 100
    for path in (out / "study.json", journal):
        os.utime(path, (past, past))
    found = status_of(out)
    assert (found.status, found.begun) == ("silent", 1) and found.written_s == pytest.approx(SILENT_S + 100, abs=50)
    assert call("status", out) == 0
    printed = capsys.readouterr().out
    assert "not running any more" in printed and "lotts-search study study.yaml" in printed
    journal.touch()
    assert status_of(out).status == "running", "a trial was written"
    os.utime(journal, (past, past))
    (out / "study.json").touch()
    assert status_of(out).status == "running", "a search was written"


def test_status_needs_no_lock(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(out)
    try:
        assert call("status", out, "--json") == 0
    finally:
        folder.close()
    assert json.loads(capsys.readouterr().out)["name"] == "study"


def test_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="is not the folder of a study"):
        status_of(tmp_path)
    (tmp_path / "study.json").write_text("[]")
    assert call("status", tmp_path) == 2
