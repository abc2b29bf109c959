"""``lotts-search study``: what it says before, meanwhile and after, and how it ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lotts_search.cli import main
from lotts_search.cli.pools import Compute
from lotts_search.cli.progress import span
from lotts_search.errors import Failure
from lotts_search.testing import AnalyticPool, analytic_info
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Generate, Result, Score, Segment
from tests.core.test_confined_costs import INFO as CONFINABLE
from tests.study.worlds import YAML, lasting, world


def use(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> list[tuple]:
    """Let the command run on ``pool``; the list collects what pools were opened for."""
    opened: list[tuple] = []

    @contextmanager
    def open_pool(self: Compute, model: str, *verifiers: str, **options: object) -> Iterator[Pool]:
        opened.append((verifiers, options))
        yield pool

    monkeypatch.setattr(Compute, "pool", open_pool)
    return opened


def call(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("info", [analytic_info(), CONFINABLE], ids=["whole", "confined"])
def test_dry_run_counts_and_starts_nothing_that_searches(
    info: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lotts_search.core.costs.PAYS", 1)
    pool = AnalyticPool(info)
    use(monkeypatch, pool)
    file, out = world(tmp_path), tmp_path / "run"
    assert call("study", file, "--out", out, "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["searches"], said["todo"], said["reused"]) == (15, 15, 0)
    by_label = {line["label"]: line for line in said["lines"]}
    # 3 prompts × 5 images of 8 NFE, once, at the larger budget; LoTTS: 3 × what fits into 24 and into 40.
    assert (by_label["best-of-n"]["searches"], by_label["best-of-n"]["nfe"], by_label["best-of-n"]["images"]) == (
        3,
        120,
        15,
    )
    assert said["seconds"] > 0 and not out.exists()
    assert all(isinstance(work, Segment) and work.stop < work.sampling.steps for work in pool.asked)
    assert call("study", file, "--out", out) == 0
    spent = {label: sum(row["nfe"] for row in lasting(out) if row["label"] == label) for label in by_label}
    assert spent == {label: line["nfe"] for label, line in by_label.items()}
    capsys.readouterr()
    asked = len(pool.asked)
    assert call("study", file, "--out", out, "--dry-run") == 0
    assert "15 searches: 15 reused" in capsys.readouterr().out and len(pool.asked) == asked


def test_several_verifiers_are_lines_of_the_dry_run_and_pools_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = use(monkeypatch, AnalyticPool())
    verifiers = ["shapes-reward", "noisy:of=shapes-reward,sd=0.03"]
    file = world(tmp_path, YAML + "verifier: [shapes-reward, {noisy: {of: shapes-reward, sd: 0.03}}]\n")
    assert call("study", file, "--out", tmp_path / "run", "--dry-run", "--json") == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    searches = {
        label: sum(line["searches"] for line in lines if line["model"] == label)
        for label in (line["model"] for line in lines)
    }
    assert searches == {f"analytic, {verifier}": 15 for verifier in verifiers}
    opened.clear()
    assert call("study", file, "--out", tmp_path / "run") == 0
    assert [names for names, _ in opened] == [(verifier,) for verifier in verifiers]
    said = " ".join(capsys.readouterr())
    assert all(f"verifier {verifier}; budget" in said for verifier in verifiers)
    assert call("status", tmp_path / "run") == 0
    assert "30" in capsys.readouterr().out


def test_it_says_what_is_reused_and_how_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = use(monkeypatch, AnalyticPool())
    more = "metrics: [tests.actors.fakes:Brightness]\nverifier: shapes-reward\n"
    yaml = YAML.replace("model: ./analytic", "model: {model: ./analytic, options: {size: [64, 64]}}") + more
    file = world(tmp_path, yaml)
    monkeypatch.chdir(tmp_path)
    assert call("study", file) == 0
    assert opened == [(("shapes-reward", "tests.actors.fakes:Brightness"), {"size": (64, 64), "rewriters": {}})]
    said = capsys.readouterr()
    assert "study: 15 searches: 15 new" in said.out
    heading = next(line for line in said.out.splitlines() if line.startswith("model "))
    assert heading.split() == ["model", "strategy", "budget", "searches", "score", "Brightness", "NFE", "images"]
    lines = [line.split() for line in said.out.splitlines() if line.startswith("analytic ")]
    rows = pq.read_table("runs/study/trials.parquet").to_pylist()
    assert len(lines) == 5
    for line in lines:
        place = line.index("NFE")  # of the budget
        label, nfe = " ".join(line[1 : place - 1]), float(line[place - 1])
        best: dict[str, dict] = {}
        for row in rows:
            if (
                (row["label"], row["budget_nfe"]) == (label, nfe)
                and row["image"] is not None
                and row["score"] is not None
            ):
                best[row["search_id"]] = max(best.get(row["search_id"], row), row, key=lambda r: r["score"])
        assert len(best) == 3 and len({row["metric_Brightness"] for row in best.values()}) > 1
        means = [f"{np.mean([row[of] for row in best.values()]):.3f}" for of in ("score", "metric_Brightness")]
        assert line[-4:-2] == means
    assert "lotts refinements=2" in said.out and "runs/study/trials.parquet" in said.out
    assert "best so far" in said.err or "15 of 15" in said.err or "study on analytic" in said.err
    assert call("study", world(tmp_path, yaml + "seeds: 2\n"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["searches"] == {"done": 30, "failed": 0, "open": 0}
    command = json.loads(Path("runs/study/study.json").read_text())["command"]
    assert command == f"lotts-search study {file}"


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(AnalyticPool):
        def submit(self, work: Generate | Score) -> Future[Result]:
            if len(self.asked) == 50:
                os.kill(os.getpid(), signal.SIGINT)
            return super().submit(work)

    file, out = world(tmp_path), tmp_path / "run"
    with Interrupted(shuffle=2) as pool:
        use(monkeypatch, pool)
        assert call("study", file, "--out", out) == 130
    assert "stopped after" in capsys.readouterr().out
    use(monkeypatch, AnalyticPool())
    assert call("study", file, "--out", out) == 0
    assert "to resume" in capsys.readouterr().out
    use(monkeypatch, AnalyticPool())
    assert call("study", file, "--out", tmp_path / "whole") == 0
    assert lasting(out) == lasting(tmp_path / "whole")


def test_failed_searches_end_with_1_and_bad_input_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nan(work: Generate | Score) -> Exception | None:
        wrong = isinstance(work, Segment) and work.sampling.prompt == "blue ring"
        return Failure("the latent is NaN") if wrong else None

    use(monkeypatch, AnalyticPool(fail=nan))
    assert call("study", world(tmp_path), "--out", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "5 of 15 searches failed, the first (best-of-n, prompt-" in error and "the latent is NaN" in error
    assert call("study", world(tmp_path, YAML + "budgets: 3\n"), "--out", tmp_path / "run") == 2
    assert "study.yaml, line 8: 'budgets' is duplicated" in capsys.readouterr().err


def test_spans_are_short() -> None:
    assert [span(s) for s in (41.6, 725, 11045)] == ["0:42", "12:05", "3:04:05"]
