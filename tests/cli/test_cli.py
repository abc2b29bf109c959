"""The command line: its files, its output and its exit codes. Searches run on the analytic model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lotts_search.cli import main, run_study
from lotts_search.cli.options import settings
from lotts_search.cli.outputs import folder_name
from lotts_search.cli.pools import Compute
from lotts_search.errors import BadInput, Failure
from lotts_search.shapes import train as shapes_train
from lotts_search.shapes.oracle_metric import ShapesOracle
from lotts_search.shapes.train import Effort
from lotts_search.shapes.world.render import render
from lotts_search.shapes.world.scene import parse_caption, scenes
from lotts_search.study.runner import Progress
from lotts_search.testing.analytic import AnalyticPool, analytic_info, nan_latents
from lotts_search.work.masks import GivenMask
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Generate, Locate, Located, Result, Rewrite, Score, Segment, Usage
from tests.report.test_report import Page
from tests.study.worlds import world

PROMPT = "a red circle"
SAMPLE = analytic_info().defaults.steps


def use(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    """Make every command run on ``pool``."""

    @contextmanager
    def opened(self: Compute, model: str, verifier: str, rewriters: object = None) -> Iterator[Pool]:
        yield pool

    monkeypatch.setattr(Compute, "pool", opened)


def unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a command opens a pool."""

    def opened(self: Compute, model: str, verifier: str) -> None:
        pytest.fail("nothing may be started for bad input")

    monkeypatch.setattr(Compute, "pool", opened)


def call(*words: str | Path) -> int:
    """Run the command line and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def generate(tmp_path: Path, *words: str | Path) -> int:
    return call("generate", PROMPT, "--out", tmp_path, *words)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> AnalyticPool:
    found = AnalyticPool()
    use(monkeypatch, found)
    return found


def test_generate_writes_image_trials_and_page(
    tmp_path: Path, pool: AnalyticPool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path, "--nfe", "100", "--seed", "3", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert printed["nfe"] == pytest.approx(sum(row["nfe"] for row in rows))
    assert printed["nfe"] <= 100
    assert printed["images"] == sum(row["images"] for row in rows) > 5
    assert printed["score"] == max(row["score"] for row in rows if row["score"] is not None)
    assert (printed["best"], printed["out"]) == (str(tmp_path / "best.png"), str(tmp_path))
    with Image.open(tmp_path / "best.png") as image:
        # The analytic verifier's score can be read off the image.
        assert float(np.mean(np.asarray(image)[..., 0] > 127)) == pytest.approx(printed["score"])
        recipe = json.loads(image.text["recipe"])
    assert recipe["prompt"] == PROMPT and recipe["seed"] == 3 and recipe["score"] == printed["score"]
    assert PROMPT in (tmp_path / "search.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"best.png", "trials.parquet", "search.html"}


def test_the_command_in_the_image_reproduces_it(tmp_path: Path, pool: AnalyticPool) -> None:
    words = ["--images", "7", "--seed", "5", "--steps", "6", "--guidance", "2.5", "--set", "children=3"]
    assert generate(tmp_path / "a", *words, "--negative", "it's dull") == 0
    with Image.open(tmp_path / "a" / "best.png") as image:
        command = shlex.split(image.text["command"])
        first = np.asarray(image)
    assert command[0] == "lotts-search"
    assert call(*command[1:], "--out", tmp_path / "b") == 0
    with Image.open(tmp_path / "b" / "best.png") as image:
        np.testing.assert_array_equal(np.asarray(image), first)
        assert shlex.split(image.text["command"]) == command
    columns = ["trial_id", "kind", "score", "nfe_cum", "best_so_far"]
    one, two = (pq.read_table(tmp_path / x / "trials.parquet").select(columns) for x in "ab")
    assert one.equals(two)
    assert "refine" in one["kind"].to_pylist()


def test_settings_reach_the_strategy(tmp_path: Path, pool: AnalyticPool) -> None:
    assert generate(tmp_path, "--strategy", "best-of-n", "--images", "9", "--set", "n=4") == 0
    assert [type(work) for work in pool.asked].count(Segment) == 4


def test_a_rewriter_and_its_settings_are_in_the_command(
    tmp_path: Path, pool: AnalyticPool, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--strategy", "ttgen", "--rewriter", "chat", "--set-rewriter", "model=m", "--images", "2"]
    assert generate(tmp_path, *words) == 0
    with Image.open(tmp_path / "best.png") as image:
        command = image.text["command"]
    assert "--rewriter chat" in command and "--set-rewriter model=m" in command
    rewrites = [row for row in pq.read_table(tmp_path / "trials.parquet").to_pylist() if row["kind"] == "rewrite"]
    assert rewrites and all(len(row["prompts"]) == 3 for row in rewrites)
    assert {work.rewriter for work in pool.asked if isinstance(work, Rewrite)} == {"chat"}
    capsys.readouterr()
    assert call("rewriters", "--json") == 0
    assert {"chat", "shapes-rewriter", "transformers"} <= set(json.loads(capsys.readouterr().out))
    assert call("rewriters", "chat") == 0
    printed = capsys.readouterr().out
    assert "base_url" in printed and "LOTTS_REWRITER_KEY" in printed


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["generate", " "], "the prompt is empty"),
        (["generate", PROMPT, "--strategy", "lots"], "did you mean 'lotts'"),
        (["generate", PROMPT, "--strategy", "nowhere.at:All"], "cannot be imported"),
        (["generate", PROMPT, "--verifier", "shape-reward"], "did you mean 'shapes-reward'"),
        (["generate", PROMPT, "--set", "refinements"], "KEY=VALUE"),
        (["generate", PROMPT, "--set", "refinments=3", "-s", "lotts"], "did you mean 'refinements'"),
        (["generate", PROMPT, "-s", "lotts", "--set", "refinements=many"], "refinements"),
        (["generate", PROMPT, "--nfe", "-1"], "not -1"),
        (["generate", PROMPT, "--steps", "100000000"], "steps must be a whole number within 1..10000, not 100000000"),
        (["generate", PROMPT, "--strategy", "ttgen", "--rewriter", "os:path"], "os:path is not a rewriter"),
        (["generate", PROMPT, "--local", "--address", "auto"], "exclude each other"),
        (["generate", PROMPT, "--local", "--generators", "2"], "leave out --local"),
        (["generate", PROMPT, "--rewriter", "chat"], "does not use a rewriter"),
        (["generate", PROMPT, "--strategy", "ttgen", "--rewriter", "chatt"], "did you mean 'chat'"),
        (["generate", PROMPT, "--strategy", "ttgen", "--set-rewriter", "timeot=3"], "did you mean 'timeout'"),
        (["generate", PROMPT, "--strategy", "ttgen", "--set-rewriter", "timeout"], "--set-rewriter takes KEY=VALUE"),
        (["demo", "--against", "lotts"], "not compared with itself"),
        (["strategies", "lots"], "did you mean 'lotts'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    words: list[str], printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unused(monkeypatch)
    assert call(*words) == 2
    out, err = capsys.readouterr()
    assert printed in err and len(err.strip().splitlines()) == 1 and err.startswith("error: ")
    assert out == ""


def test_a_budget_below_one_sample_is_bad_input(
    tmp_path: Path, pool: AnalyticPool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path, "--nfe", str(SAMPLE - 1)) == 2
    assert "does not pay for one sample, which costs 10 NFE" in capsys.readouterr().err
    assert pool.asked == [] and list(tmp_path.iterdir()) == []


def test_wrong_options_are_bad_input() -> None:
    assert call("generate", PROMPT, "--nfe", "many") == 2
    assert call("generate") == 2
    assert call("degenerate") == 2


def test_a_search_that_fails_keeps_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, AnalyticPool(fail=nan_latents))
    assert generate(tmp_path, "--nfe", "50") == 1
    assert "NaN at step 3" in capsys.readouterr().err
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert rows and {row["status"] for row in rows} == {"failed"}
    assert not (tmp_path / "best.png").exists() and (tmp_path / "search.html").exists()


def test_nothing_of_an_earlier_search_stays_beside_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def left() -> list[str]:
        return sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))

    for pool, code in ((AnalyticPool(), 0), (AnalyticPool(fail=nan_latents), 1), (AnalyticPool(), 0)):
        use(monkeypatch, pool)
        assert generate(tmp_path / "out", "--images", "2", "--strategy", "best-of-n") == code
        names = ["search.html", "trials.parquet"]
        assert left() == (["best.png", *names] if code == 0 else names)
    (tmp_path / "out" / "unscored").mkdir()
    (tmp_path / "out" / "unscored" / "0123.png").write_bytes(b"")
    assert generate(tmp_path / "out", "--images", "1", "--strategy", "resampling") == 0
    assert left() == ["best.png", "search.html", "trials.parquet"]


def test_unexpected_errors_exit_with_code_1_and_print_a_traceback_only_with_debug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Compute, model: str, verifier: str, rewriters: object = None) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(Compute, "pool", broken)
    assert generate(tmp_path) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: one" in err and "Traceback" not in err
    assert generate(tmp_path, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


class Interrupting(AnalyticPool):
    """Sends Ctrl-C to this process at the first refinement, and never answers afterwards."""

    sent = False

    def submit(self, work: Generate | Score) -> Future[Result]:
        if not self.sent and isinstance(work, Segment) and work.renoise is not None:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)
        return Future() if self.sent else super().submit(work)


def test_ctrl_c_writes_the_results_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Interrupting())
    assert generate(tmp_path, "--nfe", "200", "--json") == 130
    printed = json.loads(capsys.readouterr().out)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    done = [row for row in rows if row["status"] == "done" and row["images"]]
    assert len(done) >= 1
    assert printed["images"] == sum(row["images"] for row in rows)
    assert printed["score"] == max(row["score"] for row in done if row["score"] is not None)
    assert any(row["status"] == "cancelled" for row in rows)
    assert "Ctrl-C" in (tmp_path / "search.html").read_text()


class Masking(AnalyticPool):
    """The analytic model with support for given masks, which it uses unchanged."""

    def submit(self, work: Generate | Score) -> Future[Result]:
        if not (isinstance(work, Locate) and isinstance(work.source, GivenMask)):
            return super().submit(work)
        import io

        self.asked.append(work)
        mask = np.asarray(Image.open(io.BytesIO(work.source.png)).convert("L")) > 127
        answered: Future[Result] = Future()
        answered.set_result(Result(Usage(), located=Located(mask, mask.astype(np.float32), {})))
        return answered


def test_refine_resamples_the_image_inside_the_mask_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = Masking()
    use(monkeypatch, pool)
    image = np.full((6, 6, 3), 60, dtype=np.uint8)
    image[:, :3] = 190
    Image.fromarray(image).save(tmp_path / "in.png")
    mask = np.zeros((6, 6), dtype=np.uint8)
    mask[:, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ["refine", tmp_path / "in.png", "--prompt", PROMPT, "--mask", tmp_path / "mask.png", "--images", "6"]
    assert call(*words, "--out", tmp_path / "out", "--json", "--set", "integrate=0") == 0
    printed = json.loads(capsys.readouterr().out)
    rows = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    assert [row["kind"] for row in rows if row["parent_id"] is None] == ["encode"]
    assert {row["mask_ratio"] for row in rows if row["kind"] == "refine"} == {0.5}
    assert printed["score"] >= 0.5  # the image itself is a candidate
    with Image.open(tmp_path / "out" / "best.png") as best:
        # The left half was light and must stay so: nothing is resampled outside the mask.
        np.testing.assert_allclose(np.asarray(best)[:, :3].astype(int), 190, atol=1)
    assert str(tmp_path / "mask.png") in shlex.split(printed["command"])


@pytest.mark.parametrize(
    ("image", "mask", "printed"),
    [
        ("none.png", None, "no file"),
        ("text.png", None, "not a readable image"),
        ("in.png", "black.png", "black.png is empty: no pixel is white"),
    ],
)
def test_refine_reports_a_bad_file(
    image: str, mask: str | None, printed: str, tmp_path: Path, pool: AnalyticPool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name in ("in.png", "black.png"):
        Image.new("RGB", (6, 6)).save(tmp_path / name)
    more = [] if mask is None else ["--mask", tmp_path / mask]
    assert call("refine", tmp_path / image, "--prompt", PROMPT, "--out", tmp_path / "out", *more) == 2
    assert printed in capsys.readouterr().err.splitlines()[-1]


class Painting(AnalyticPool):
    """The analytic model with its images replaced by those of the shapes world."""

    def __init__(self) -> None:
        super().__init__(replace(analytic_info(), image=(64, 64)))

    def submit(self, work: Generate | Score) -> Future[Result]:
        future = super().submit(work)
        if isinstance(work, Segment) and future.result().image is not None:
            seed = int(np.abs(np.asarray(future.result().image)).sum())
            drawn = render(parse_caption(work.sampling.prompt), np.random.default_rng(seed), damage=0.4)
            future.result().image = (drawn.image * 255).round().astype(np.uint8)
        return future


def analytic(folder: Path) -> Path:
    """A model folder that says what the analytic model costs."""
    world(folder)
    return folder / "analytic"


def demo(tmp_path: Path, *words: str | Path) -> int:
    return call("demo", "--model", analytic(tmp_path), "--out", tmp_path / "out", *words)


def test_demo_compares_and_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Painting())
    assert demo(tmp_path, "--prompts", "3", "--seconds", "600", "--json") == 0
    printed = json.loads(capsys.readouterr().out)["models"]["analytic"]
    assert printed["prompts"] == 3 and printed["nfe"] == 8 * SAMPLE
    rows = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    winners: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:  # in virtual order: the last image that was better than all before it wins
        key = row["strategy"], row["prompt"]
        if row["metric_oracle"] is not None and row["score"] > winners.get(key, {"score": -1.0})["score"]:
            winners[key] = row
    assert {prompt for _, prompt in winners} == {scene.caption for scene in scenes("test", 3)}
    for name in ("lotts", "best-of-n"):
        quality = [row["metric_oracle"] for (strategy, _), row in winners.items() if strategy == name]
        assert printed["strategies"][name]["oracle"] == pytest.approx(np.mean(quality))
        spent = sum(row["nfe"] for row in rows if row["strategy"] == name)
        assert printed["strategies"][name]["nfe"] == pytest.approx(spent / 3)
        assert spent / 3 <= printed["nfe"]
    # Same seed, same first image: the strategies begin alike.
    first = {
        (r["strategy"], r["prompt"]): r["image"] for r in reversed(rows) if r["lineage"] == ["seed 0"] and r["image"]
    }
    assert all(first["lotts", s.caption] == first["best-of-n", s.caption] for s in scenes("test", 3))
    html = (tmp_path / "out" / "index.html").read_text()
    gaps = [winners["lotts", s.caption]["metric_oracle"] - winners["best-of-n", s.caption]["metric_oracle"]
            for s in scenes("test", 3)]  # fmt: skip
    assert printed["difference"]["oracle"]["mean"] == pytest.approx(np.mean(gaps))
    for gap in (printed["difference"]["oracle"], printed["difference"]["reward"]):
        assert f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" in html
    page = Page(html)
    assert page.classes.count("pair") == 3  # all winners
    assert page.classes.count("chart") == 10  # all costs but seconds, all values
    assert page.classes.count("ahead") == sum(gap != 0 for gap in gaps)
    assert page.classes.count("region") > 2 and all(r.startswith("data:") for r in page.references)
    # The same command finds nothing left to run, and makes the same comparison.
    use(monkeypatch, Silent())
    assert demo(tmp_path, "--prompts", "3", "--seconds", "600") == 0
    shown = capsys.readouterr().out
    gap = printed["difference"]["oracle"]
    assert "6 searches: 6 reused" in shown and f"look at {tmp_path / 'out' / 'index.html'}" in shown
    assert (
        f"lotts − best-of-n, oracle, paired, 95 %: {gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" in shown
    )


class Silent(AnalyticPool):
    """A pool that never answers."""

    def submit(self, work: Generate | Score) -> Future[Result]:
        return Future()


def test_demo_without_a_finished_prompt_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Silent())
    assert demo(tmp_path, "--seconds", "0.05") == 1
    assert "give more --seconds" in capsys.readouterr().err
    use(monkeypatch, AnalyticPool(fail=lambda work: Failure("the disk is full")))
    assert demo(tmp_path, "--prompts", "2") == 1
    assert "the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.html").exists()


class Slow(Painting):
    """Answers no refinement after the first two prompts."""

    def submit(self, work: Generate | Score) -> Future[Result]:
        prompts = list(dict.fromkeys(w.sampling.prompt for w in self.asked if isinstance(w, Segment)))
        if isinstance(work, Segment) and work.renoise is not None and work.sampling.prompt not in prompts[:2]:
            return Future()
        return super().submit(work)


@pytest.mark.parametrize("interrupt", [False, True], ids=["time is up", "Ctrl-C"])
def test_demo_counts_the_prompts_that_both_strategies_finished(
    interrupt: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ShapesOracle, "processes", False)  # whose start takes longer than these searches
    use(monkeypatch, Slow())
    ended, late = False, 0.0  # late: seconds by which the clock of the event loop is ahead
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: time.monotonic() + late)
    shown_status = run_study._status

    def status(progress: Progress) -> str:
        """End the study as soon as all searches but the two that wait for a refinement have finished."""
        nonlocal ended, late
        if progress.finished == 6 and not ended:
            ended = True
            if interrupt:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                late = 600.0
        return shown_status(progress)

    monkeypatch.setattr(run_study, "_status", status)
    assert demo(tmp_path, "--prompts", "4", "--seconds", "600", "--json") == (130 if interrupt else 0)
    printed = json.loads(capsys.readouterr().out)["models"]["analytic"]
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert study["status"] == ("interrupted" if interrupt else "out of time")
    done = {
        name: {s["prompt_id"] for s in study["searches"] if (s["label"], s["status"]) == (name, "done")}
        for name in ("lotts", "best-of-n")
    }
    whole = len(done["lotts"] & done["best-of-n"])
    assert printed["prompts"] == whole <= 2 < len(done["best-of-n"])  # LoTTS is stuck on the other two
    assert Page((tmp_path / "out" / "index.html").read_text()).classes.count("pair") == whole


def test_the_list_commands_show_what_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    named = {
        "models": "shapes-sd",
        "strategies": "best-of-n",
        "verifiers": "shapes-reward",
        "metrics": "shapes-oracle",
        "rewriters": "chat",
        "masks": "error-contrast",
    }
    for command, name in named.items():
        assert call(command, "--json") == 0
        assert name in json.loads(capsys.readouterr().out)
        assert call(command) == 0
        assert name in capsys.readouterr().out
    assert call("strategies", "lotts", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert "Algorithm 3" in about["source"] and "refinements · (T - t0)" in about["formula"]
    listed = {setting["name"] for setting in about["settings"]}
    assert {"initial", "refinements", "depth", "ratio", "alpha", "level", "start", "integrate"} <= listed
    assert call("strategies", "lotts") == 0
    shown = capsys.readouterr().out
    assert "Algorithm 3" in shown and "refinements · (T - t0)" in shown


def test_train_passes_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path, dict[str, object]]] = []

    def train(name: str, out: Path, **more: object) -> Path:
        asked.append((name, out, more))
        return out

    monkeypatch.setattr(shapes_train, "train", train)
    options = ["--images", "64", "--batch", "8", "--start", tmp_path, "--device", "cuda"]
    assert call("train", "shapes-sd", "--out", tmp_path, *options) == 0
    assert call("train", "shapes-reward") == 0
    assert call("train", "shapes-flux", "--minutes", "2.5") == 0
    effort = replace(Effort.on("shapes-sd", "cuda"), images=64, batch=8)
    assert asked[0] == ("shapes-sd", tmp_path, {"effort": effort, "start": tmp_path, "renders": None, "device": "cuda"})
    name, out, given = asked[1]
    assert (name, out, given["effort"]) == ("shapes-reward", Path("out/shapes-reward"), Effort.on(name, "cpu"))
    by_the_clock = asked[2][2]["effort"]
    assert isinstance(by_the_clock, Effort) and by_the_clock.minutes == 2.5
    assert by_the_clock.images > 10**12  # the time limit ends it, not the count


@pytest.mark.parametrize(
    "command", ["generate", "refine", "demo", "train", "models", "strategies", "verifiers", "metrics", "theory"]
)
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    assert re.search(r"^\s+lotts-search \w+", capsys.readouterr().out, re.MULTILINE)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom lotts_search.cli import main\n"
        "try: main(['generate', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'diffusers', 'numpy', 'pyarrow') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_settings_are_split_at_the_first_equals_sign() -> None:
    assert settings(["template=a=b", " n = 3 "]) == {"template": "a=b", "n": "3"}
    assert settings(None) == {}
    with pytest.raises(BadInput):
        settings(["=3"])
    with pytest.raises(BadInput, match="--set n is given twice"):
        settings(["n=3", "m=4", "n =5"])


def test_folder_names_are_plain() -> None:
    name = folder_name("Top left: a red ☂ circle!", "my.module:Class", "lotts-search generate")
    assert re.fullmatch("top-left-a-red-circle-my-module-Class-[0-9a-f]{8}", name)
    assert "/" not in folder_name("../../etc/passwd", "lotts", "lotts-search generate")


def test_a_search_that_stops_early_reports_what_it_saved(
    pool: AnalyticPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = ("--strategy", "adaptive-lotts", "--set", "worth=0.5", "--nfe", "900")
    assert generate(tmp_path / "json", *stop, "--json") == 0
    saved = json.loads(capsys.readouterr().out)
    assert saved["saved_nfe"] == 900 - saved["nfe"] > 300 and "0.5 of its spread" in saved["stopped"]
    assert generate(tmp_path / "text", *stop) == 0
    assert f"saved {saved['saved_nfe']:g} NFE: no trial is expected" in capsys.readouterr().out


class Unscored(AnalyticPool):
    """Its verifier fails from the first image on, though a probe had a score."""

    def submit(self, work: Generate | Score) -> Future[Result]:
        if not isinstance(work, Score):
            return super().submit(work)
        failed: Future[Result] = Future()
        failed.set_exception(Failure("the judge is out of credit"))
        return failed


@pytest.mark.parametrize(("strategy", "images"), [("best-of-n", 3), ("resampling", 1), ("evolutionary", 4)])
def test_images_that_could_not_be_scored_are_kept_and_their_place_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], strategy: str, images: int
) -> None:
    use(monkeypatch, Unscored())
    assert generate(tmp_path, "--strategy", strategy, "--images", str(images)) == 1
    err = "".join(capsys.readouterr().err.split())  # lines may be wrapped anywhere
    assert f"thejudgeisoutofcredit;whatwasgeneratedisin{tmp_path / 'unscored'}" in err
    kept = sorted((tmp_path / "unscored").glob("*.png"))
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    made = {row["trial_id"] for row in rows if row["kind"] == "sample"}
    assert {path.stem for path in kept} == made and len(kept) == images
    for path in kept:
        with Image.open(path) as image:
            assert image.size == (6, 6) and "--strategy" in image.text["command"]  # type: ignore[attr-defined]
    assert not (tmp_path / "best.png").exists()


CHATTY = """
import os
import sys
import numpy as np
print("imported")

class Chatty:
    name, requirements = "chatty", ()

    @classmethod
    def load(cls):
        print("loading 100%")
        return cls()

    def score(self, prompts, images):
        print('{"score": 7}')
        sys.stdout.write("scored\\n")
        os.write(1, b"from C\\n")
        os.system("echo from a child")
        return images.mean(axis=(1, 2, 3)).astype(np.float32)
"""


@pytest.mark.parametrize(
    "words",
    [("generate", "center red star on gray", "--strategy", "resampling"), ("generate", "x", "--strategy", "best-of-n")],
)
def test_json_stays_pure_whatever_a_verifier_prints(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "chatty.py").write_text(CHATTY)
    options = ["--local", "--images", "1", "--steps", "2", "--verifier", "chatty:Chatty", "--json", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "lotts_search", *words, *options],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])},
    )  # fmt: skip
    assert json.loads(done.stdout)["images"] == 1 and done.stdout.count("\n") == 1
    for text in ("loading 100%", '{"score": 7}', "from C", "from a child"):
        assert text in done.stderr


@pytest.mark.parametrize("kind", ["NoLoad", "Nothing", "number"])
def test_a_verifier_without_load_ends_in_one_clear_message(tmp_path: Path, kind: str) -> None:
    (tmp_path / "own.py").write_text("class NoLoad:\n    name = 'x'\nnumber = 3\n")
    done = subprocess.run(
        [sys.executable, "-m", "lotts_search", "generate", "x", "--local", "--verifier", f"own:{kind}", "--out", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])},
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr and f"own:{kind}" in done.stderr
    assert "is not a verifier" in done.stderr or "cannot be imported" in done.stderr
