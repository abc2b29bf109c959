"""Trials that fail are named wherever a search or a study ends, although neither of them fails."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lotts_search import search
from lotts_search.core.failures import Failures
from lotts_search.engine.engine import Engine
from lotts_search.errors import Failure, Notice, described
from lotts_search.localization.quality import locate_quality
from lotts_search.testing import AnalyticPool
from lotts_search.work.masks import QualityMask
from lotts_search.work.requests import Locate, Sampling, Work
from tests.cli.test_cli import call, generate, use
from tests.study.test_command import use as use_in_studies
from tests.study.worlds import world
from tests.tiny import run, sample, tiny_backbone

WHY = "the plug-in broke"


def breaks(work: Work) -> Exception | None:
    """Fail the localizations of the image of seed 1, with an error of two lines."""
    return Failure(f"{WHY}\nin line 3") if isinstance(work, Locate) and work.lineage[0] == "seed 1" else None


def counted(trials: Path) -> tuple[int, dict[str, int]]:
    """The rows of a trial table that failed, by kind."""
    kinds = Counter(row["kind"] for row in pq.read_table(trials).to_pylist() if row["status"] == "failed")
    return kinds.total(), dict(kinds)


def test_search_reports_failed_trials_and_the_result_has_them() -> None:
    with AnalyticPool(fail=breaks) as pool, pytest.warns(Notice) as caught:
        result = search("red star", strategy="lotts", pool=pool, nfe=60)
    assert result.failures == Failures(1, len(result.trials), {"localize": 1}, WHY)
    said = f"1 of {len(result.trials)} trials failed (1 localize), the first because: {WHY}"
    assert [str(one.message) for one in caught] == [said] and said in repr(result)
    assert caught[0].filename == __file__
    with AnalyticPool() as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        result = search("red star", strategy="lotts", pool=pool, nfe=60)
    assert "failed" not in repr(result)
    assert str(result.failures) == f"none of {len(result.trials)} trials failed"


def test_generate_names_failed_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, AnalyticPool(fail=breaks))
    assert generate(tmp_path, "--strategy", "lotts", "--nfe", "60", "--json") == 0
    out, err = capsys.readouterr()
    count, kinds = counted(tmp_path / "trials.parquet")
    assert count == 1 and f"(1 localize), the first because: {WHY}\n" in err
    failed = json.loads(out)["failed"]
    assert failed == {"count": count, "trials": failed["trials"], "kinds": kinds, "error": WHY}
    assert failed["trials"] == len(pq.read_table(tmp_path / "trials.parquet"))
    assert "failed trials" in (tmp_path / "search.html").read_text()
    use(monkeypatch, AnalyticPool())
    assert generate(tmp_path, "--strategy", "lotts", "--nfe", "60", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["failed"]["count"] == 0 and "failed" not in err
    assert "failed trials" not in (tmp_path / "search.html").read_text()


def test_a_study_and_its_report_name_failed_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = world(tmp_path), tmp_path / "run"
    use_in_studies(monkeypatch, AnalyticPool(fail=breaks))
    assert call("study", file, "--out", out) == 0
    count, kinds = counted(out / "trials.parquet")
    assert count > 2 and kinds == {"localize": count}
    printed = capsys.readouterr().out
    assert f"{count} of " in printed and f"trials failed ({count} localize), the first because: {WHY}\n" in printed
    (heading,) = [line for line in printed.splitlines() if "failed trials" in line]
    assert heading.split()[-2:] == ["failed", "trials"]
    table = [line.split() for line in printed.splitlines() if line.split()[-1:] != ["trials"] and " NFE " in line]
    assert sum(int(row[-1]) for row in table) == count
    about = json.loads((out / "study.json").read_text())
    assert (about["failed_trials"]["count"], about["failed_trials"]["error"]) == (count, WHY)
    assert sum(one["failed_trials"] for one in about["searches"]) == count
    assert {one["status"] for one in about["searches"]} == {"done"}

    assert call("report", out, "--trees", "0", "--no-figures") == 0
    assert f"{count} of {len(pq.read_table(out / 'trials.parquet'))} trials failed" in capsys.readouterr().err
    page = (out / "report" / "index.html").read_text()
    assert "failed trials" in page and WHY in page
    assert call("report", out, "--trees", "0", "--no-figures", "--json") == 0
    assert json.loads(capsys.readouterr().out)["failed_trials"] == about["failed_trials"]


def test_a_study_without_failed_trials_says_nothing_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_in_studies(monkeypatch, AnalyticPool())
    assert call("study", world(tmp_path), "--out", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "failed trials" not in printed and "trials failed" not in printed
    assert json.loads((tmp_path / "run" / "study.json").read_text())["failed_trials"]["count"] == 0


def test_the_error_of_a_mask_source_names_it_and_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the model, which has no part in it."""
    sampling = Sampling("a red circle", 4, 3.0)
    (finished,) = run(Engine(tiny_backbone(), 2), sample(0, sampling))
    assert finished.state is not None

    def divide(*arguments: object) -> int:
        return 1 // 0

    monkeypatch.setitem(locate_quality.__globals__, "from_heat", divide)
    engine = Engine(tiny_backbone(), 2)
    asked = engine.submit(Locate(5, ("seed 0",), finished.state, sampling, QualityMask(), finished.image))
    while engine.tick():
        pass
    with pytest.raises(Failure) as raised:
        asked.result()
    why = f"ZeroDivisionError: integer division or modulo by zero ({Path(__file__).name}, line {divide.__code__.co_firstlineno + 1})"
    assert str(raised.value) == f"model tiny with QualityMask failed: {why}"


def test_the_line_of_an_error_is_the_plug_ins() -> None:
    """It is neither one of this package, nor one of a library."""
    try:
        json.loads("{")
    except ValueError as error:
        assert described(error).endswith(f"({Path(__file__).name}, line {error.__traceback__.tb_lineno})")  # type: ignore[union-attr]
    assert described(KeyError("a")) == "KeyError: 'a'"
