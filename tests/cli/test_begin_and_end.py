"""What commands say and check before they begin, and what is left when they cannot end well."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lotts_search.actors.crew import Limits
from lotts_search.actors.placement import Placement
from lotts_search.cli import _Notices, main
from lotts_search.cli.pools import Compute
from lotts_search.cli.run_demo import run as run_demo
from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.shapes.world.vocabulary import report_unknown_words, unknown_words
from lotts_search.study.prompts import load_prompts
from lotts_search.study.read import read_study
from lotts_search.testing import AnalyticPool
from lotts_search.work.pool import Pool
from lotts_search.work.replacing import replacing
from tests.study.worlds import YAML, files, lasting, world


def use(monkeypatch: pytest.MonkeyPatch, pool: Pool | Exception) -> None:
    """Let every command run on ``pool``, or fail to load it."""

    @contextmanager
    def opened(self: Compute, model: str, *verifiers: str, **options: object) -> Iterator[Pool]:
        if isinstance(pool, Exception):
            raise pool
        yield pool

    monkeypatch.setattr(Compute, "pool", opened)


def call(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Failure("there are no weights"), 1),
        (BadInput("there are no weights"), 2),
        (RuntimeError("there are no weights\nat all"), 1),
    ],
)
def test_a_study_whose_model_cannot_be_loaded_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    use(monkeypatch, error)
    out = tmp_path / "run"
    assert call("study", world(tmp_path), "--out", out) == code
    study = json.loads((out / "study.json").read_text())
    assert (study["status"], study["error"]) == ("failed", "there are no weights")
    assert study["finished"] is not None
    use(monkeypatch, AnalyticPool())
    assert call("study", world(tmp_path), "--out", out) == 0
    assert json.loads((out / "study.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("verifier: tests.actors.fakes:Missing\n", "tests.actors.fakes:Missing"),
        ("metrics: [no_such_package:Verifier]\n", "no_such_package"),
        ("metrics: [tests.study.worlds:YAML]\n", "load"),
        ("guidance: .inf\n", "guidance must be a"),
        ("eta: 2\nsolver: ddim\n", "eta of DDIM"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: str, message: str
) -> None:
    use(monkeypatch, AnalyticPool())
    out = tmp_path / "run"
    assert call("study", world(tmp_path, YAML + more), "--out", out, "--dry-run") == 2
    assert message in capsys.readouterr().err and not out.exists()


ODD = ("[draft]", "[/b]", "a [bold]b[/bold]", ":snake:", "[link=x]y")


@pytest.mark.parametrize("name", ODD)
def test_names_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    use(monkeypatch, AnalyticPool())
    monkeypatch.chdir(tmp_path)
    folder = name.replace("/", "\N{DIVISION SLASH}") if name == "[/b]" else name.replace("/", "")
    for out in (folder, f"[out{name}" if "/" in name else folder):  # a slash makes a folder below
        assert (
            call("generate", "center red star on gray", "--strategy", "resampling", "--images", "1", "--out", out) == 0
        )
        assert f"report   {out}/search.html\n" in capsys.readouterr().out
    study = world(tmp_path, YAML.replace("- best-of-n", f"- {{strategy: best-of-n, label: '{name}'}}"))
    assert call("study", study, "--out", folder + "2", "--dry-run") == 0
    assert f"analytic  {name} " in capsys.readouterr().out
    assert call("study", study, "--out", folder + "2") == 0
    shown = capsys.readouterr().out
    assert f"analytic  {name} " in shown and f"trials   {folder}2/trials.parquet\n" in shown


def test_a_working_directory_that_was_deleted_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, AnalyticPool())
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert call("generate", "center red star on gray", "--images", "1", "--out", "out") == 2
    assert "error: --out out: cannot write there: No such file" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("generate P --verifier=", "a verifier is NAME or NAME:KEY=VALUE"),
        ("generate P --strategy=", "unknown strategy ''"),
        ("generate P --rewriter=", "does not use a rewriter: leave it out"),
        ("generate P --dtype=", "dtype must be float32"),
        ("generate P --size ²", "--size takes WIDTHxHEIGHT"),
        ("generate P --set n=2 --set n=3", "--set n is given twice"),
        ("generate P --set regions=1000000000", "regions must be within 1..22, not 1000000000"),
        ("generate P --set regions=17", "regions must be within 1..16, the cells of a side of the latent, not 17"),
        ("generate P --set mosaics=1001", "mosaics must be within 1..1000, not 1001"),
        (
            "generate P --strategy lotts --set refinements=9999999999999999999",
            "refinements must be within 1..100000, not",
        ),
        ("generate P --strategy best-of-n --set n=100001", "n must be within 1..100000, not 100001"),
        ("generate P --guidance 0.5", "guidance must be 1 (unguided) or more, not 0.5"),
        ("generate P --guidance nan", "guidance must be a finite number"),
        ("generate P --eta -1", "eta must be a number of 0 or more, got -1"),
        ("generate P --eta 1.5 --solver ddim", "eta of DDIM must be within 0..1, got 1.5"),
        ("generate P --negative dull --guidance 1", "the negative prompt 'dull' would not be used"),
        ("generate P --nfe 9", "a budget of 9 NFE does not pay for one sample, which costs 10 NFE"),
        ("generate P --nfe 3 --steps 4", "does not pay for one sample, which costs 4 NFE"),
        ("generate P --images 0", "does not pay for one sample"),
        ("generate P --set start=10", "start must be within 0..9, not 10"),
        ("generate P --set start=4 --steps 4", "start must be within 0..3, not 4"),
        ("generate P --set ratio=1.5", "a mask's ratio must be above 0 and at most 1, not 1.5"),
        ("generate P --strategy ttgen --set-rewriter timeout=-1", "timeout of a rewriter must be above 0, not -1"),
        ("generate P --revision main", "revision 'main' would not be used: shapes-sd is a folder"),
        ("generate P --device tpu", "device must be cpu, cuda or cuda:N, got 'tpu'"),
        ("refine none.png --prompt P", "there is no file none.png"),
        ("refine text.png --prompt P", "text.png is not a readable image"),
        ("refine image.png --prompt P --mask none.png", "there is no file the mask none.png"),
        ("refine image.png --prompt P --mask image.png", "the mask image.png is empty"),
        ("refine image.png --prompt P --strategy best-of-n", "strategy 'best-of-n' cannot start from an image"),
        ("refine image.png --prompt P --nfe 3", "does not pay for one refinement"),
        ("study study.yaml --device tpu", "device must be"),
        ("generate P --batch 1", "--batch must be 2 or more, for a guided candidate has two rows, not 1"),
        ("study study.yaml --batch many", "not a batch: 'many'; give rows as 8, or several sizes as 2,4,8,16"),
        ("demo --batch 4,0", "a batch has 1 row or more, not 0"),
        ("study start.yaml", "start.yaml: lotts start=10 on shapes-sd: start must be within 0..9, not 10"),
        ("tune lotts --images 0", "images must be an integer of 1 or more, not 0"),
        ("tune lotts --nfe 0", "a budget of 0 NFE does not pay for the first image of trial 0"),
        ("tune lotts --nfe nan", "nfe must be a number of 0 or more, not nan"),
        ("tune lotts --set ratio=7", "a mask's ratio must be above 0 and at most 1, not 7"),
        ("demo --nfe 3", "error: a budget of 3 NFE does not pay for the first image of lotts on shapes-sd"),
        ("demo --seconds nan", "error: seconds must be a number of 0 or more, not nan"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    use(monkeypatch, RuntimeError("a model was loaded"))
    world(tmp_path)
    embedded = YAML.replace("./analytic", "shapes-sd")
    (tmp_path / "start.yaml").write_text(embedded.replace("grid: {refinements: [1, 2]}", "settings: {start: 10}"))
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    prompt = "center red star on gray"
    assert call(*(prompt if word == "P" else word for word in words.split()), "--out", "out") == 2
    said = capsys.readouterr().err
    assert message in said and "starting" not in said and "loading" not in said


@pytest.mark.parametrize(
    ("words", "rows"), [([], 8), (["--batch", "2"], 2), (["--batch", "64"], 64), (["--batch", "4,2"], [2, 4])]
)
@pytest.mark.parametrize("where", ["engine.local_pool.LocalPool", "actors.ray_pool.RayPool"])
def test_pools_have_the_rows_that_the_command_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, words: list[str], rows: int | list[int]
) -> None:
    found: list[object] = []

    def made(*arguments: object, **options: object) -> Pool:
        found.append(options["batch"] if "batch" in options else arguments[2])
        return AnalyticPool()

    monkeypatch.setattr(f"lotts_search.{where}", made)
    monkeypatch.setattr("lotts_search.registry.load_backbone", lambda *_, **__: None)
    monkeypatch.setattr("lotts_search.registry.load_verifier", lambda name: None)
    local = ["--local"] if "Local" in where else []
    assert call("generate", "center red star on gray", "--images", "2", "--out", tmp_path, *local, *words) == 0
    file = world(tmp_path, YAML.replace("./analytic", "shapes-sd"))
    assert call("study", file, "--out", tmp_path / "run", *local, *words) == 0
    assert found == [rows, rows]


def test_actors_are_those_that_the_study_and_the_command_describe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[dict[str, Any]] = []

    def made(*_: object, **options: Any) -> Pool:
        found.append(options)
        return AnalyticPool()

    monkeypatch.setattr("lotts_search.actors.ray_pool.RayPool", made)
    file = world(tmp_path, YAML + "place: {gpus: 0.5, verifiers: 4, label.pool: gpu}\n")
    words = ["--address", "h:1", "--place", "verifiers=2", "--limit", "answer-s=60", "--ship", "my_masks"]
    assert call("study", file, "--out", tmp_path / "run", *words) == 0
    (options,) = found
    assert options["placement"] == Placement(0.5, 2, labels={"pool": "gpu"})
    assert (options["limits"], tuple(options["packages"])) == (Limits(answer_s=60), ("my_masks",))
    resuming = json.loads((tmp_path / "run" / "study.json").read_text())["command"]
    assert resuming.endswith(" ".join(words)), "the file says the rest again"
    capsys.readouterr()
    assert call("study", file, "--out", tmp_path / "run", "--local") == 0
    assert capsys.readouterr().err.count("note: place of the study is about actors on Ray") == 1
    for wrong, said in (("gpus: half", "the placement gpus must be a number"), ("gpus: [1]", "gpus of place must be")):
        file = world(tmp_path, YAML + f"place:\n  {wrong}\n")
        assert call("study", file, "--out", tmp_path / "new", "--dry-run") == 2
        where = f"study.yaml, line {YAML.count(chr(10)) + 2}: {said}"
        assert where in capsys.readouterr().err


def test_a_tuning_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refusing(AnalyticPool):
        def submit(self, work: Any) -> Any:
            raise BadInput("this pool makes no images")

    monkeypatch.chdir(tmp_path)
    with Refusing() as pool:
        use(monkeypatch, pool)
        assert call("tune", "lotts", "--trials", "2", "--count", "2", "--out", tmp_path / "run") == 1
    assert "this pool makes no images" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("option", ["{dtype: float17}", "{size: 64}", "{quantize: int8}", "{offload: [1]}"])
def test_wrong_options_of_a_model_name_their_line(tmp_path: Path, option: str) -> None:
    path = world(tmp_path, YAML.replace("model: ./analytic", f"model: {{model: ./analytic, options: {option}}}"))
    with pytest.raises(BadInput, match=r"study\.yaml, line 1"):
        read_study(path)


def test_a_dry_run_reports_a_model_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, BadInput("size must be a multiple of 8"))
    assert call("study", world(tmp_path), "--out", tmp_path / "run", "--dry-run") == 2
    use(monkeypatch, Failure("no GPU is here"))
    assert call("study", world(tmp_path), "--out", tmp_path / "run", "--dry-run") == 1
    assert "no GPU is here" in capsys.readouterr().err
    assert call("study", world(tmp_path), "--out", tmp_path / "run", "--dry-run", "--address", "auto") == 0
    assert "no GPU is here" in capsys.readouterr().out, "machines of a cluster may have one"


GRID = "{" + ", ".join(f"{name}: [{', '.join(map(str, range(1, 101)))}]" for name in ("refinements", "n")) + "}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("grid: {refinements: [1, 2]}", f"grid: {GRID[:-1]}, start: [1, 2]}}", "20,000 combinations"),
        ("prompts: [red star, blue ring, green cross]", "prompts: {from: shapes-test, count: 100000000}", "10,000 prompts"),
        (
            "prompts: [red star, blue ring, green cross]",
            "prompts: {from: shapes-tune, count: 100000000, where: {objects: 7}}",
            "10,000 prompts",
        ),
        ("budgets:", "seeds: 100000000\nbudgets:", "the number of seeds"),
        ("budgets:", "seeds: 500000\nbudgets:", "9,000,000 searches"),
    ],
    ids=["grid", "scenes", "chosen scenes", "seeds", "searches"],
)  # fmt: skip
def test_huge_studies_are_refused_at_once(tmp_path: Path, old: str, new: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(BadInput, match=f"study.yaml, line [0-9].*{re.escape(message)}"):
        read_study(world(tmp_path, YAML.replace(old, new)))
    assert time.monotonic() - began < 5


def test_rare_scenes_are_as_many_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lotts_search.study.prompts.MOST_SCENES", 600)
    with pytest.warns(Notice, match=r"shapes-test has \d+ prompts with objects = 9 instead of 550"):
        found = load_prompts("shapes-test", count=550, where={"objects": 9})
    assert 50 < len(found) < 550 and {prompt.fields["objects"] for prompt in found} == {9}


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (
            ["generate", "red star", "--images", "2", "--steps", "5", "--guidance", "2.5"],
            ["6×6 pixels, 5 steps, guidance 2.5, solver dpm with eta 1", "verifier shapes-reward; budget 2 images"],
        ),
        (["generate", "red star", "--nfe", "30", "--solver", "ddim", "--eta", "0.5"], ["ddim with eta 0.5", "30 NFE"]),
        (["generate", "red star", "--model", "shapes-sdxl", "--images", "1"], ["EulerDiscreteScheduler"]),
        (["study"], ["8 steps", "budget 24 NFE, 40 NFE"]),
    ],
)
def test_the_start_says_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], parts: list[str]
) -> None:  # fmt: skip
    pool = AnalyticPool()
    if "--model" in command:
        pool.info = pool.info.__class__(**{**vars(pool.info), "name": "shapes-sdxl"})
    use(monkeypatch, pool)
    words = [*command, world(tmp_path)] if command == ["study"] else command
    assert call(*words, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert shown.err.count("using ") == 1
    for part in [*parts, "instead of the folder's "]:
        assert part in shown.err
    assert call(*words, "--out", tmp_path / "again", "--json") == 0
    json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["a red fox in the snow", "Red FOX"], ["fox", "snow"]),
        (["A high-quality image of top left red circle, center blue star on gray"], []),
        (["ein roter Kreis, 3 Sterne"], ["ein", "roter", "kreis", "3", "sterne"]),
        (["日本 circle"], ["日本"]),
    ],
)
def test_unknown_words(prompts: list[str], words: list[str]) -> None:
    assert unknown_words(prompts) == words


def test_embedded_models_report_unknown_words_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, AnalyticPool())
    assert call("generate", "a red fox", "--images", "2", "--out", tmp_path / "a") == 0
    assert capsys.readouterr().err.count("note: shapes-sd does not know the words fox: ") == 1
    assert call("generate", "center red star on gray", "--images", "2", "--out", tmp_path / "b") == 0
    assert "does not know" not in capsys.readouterr().err
    words = " ".join("abcdefghijklmnopqrstuvwxyz"[i] * 9 for i in range(12))
    with pytest.warns(Notice, match="ddddddddd, eeeeeeeee, .* and 4 more"):
        report_unknown_words("shapes-flux", [words])
    file = tmp_path / "s.yaml"
    file.write_text("strategies: best-of-n\nprompts: [red fox, blue hare]\nbudgets: {images: 2}\n")
    assert call("study", file, "--out", tmp_path / "run") == 0
    assert capsys.readouterr().err.count("note: shapes-sd does not know the words fox, hare: ") == 1


def test_notices_are_printed_whatever_hides_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, AnalyticPool())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as PYTHONWARNINGS=ignore does
        assert call("generate", "a red fox", "--images", "1", "--out", tmp_path) == 0
    assert "note: shapes-sd does not know the words fox: " in capsys.readouterr().err


def test_a_notice_is_printed_once_and_other_warnings_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    others: list[object] = []
    show = _Notices(lambda *shown, **_: others.append(shown[0]))
    for text in ("cut", "cut", "ignored", "cut"):
        show(Notice(text), Notice, "any.py", 1)
    other = UserWarning("cut")
    show(other, UserWarning, "any.py", 1)
    assert tuple(capsys.readouterr()) == ("", "note: cut\nnote: ignored\n") and others == [other]


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("broken", "lost", "kept"),
    [
        ("PIL.Image.Image.save", ["best.png"], {"trials.parquet", "search.html"}),
        ("pyarrow.parquet.write_table", ["trials.parquet"], {"best.png", "search.html"}),
        ("pathlib.Path.write_text", ["search.html"], {"best.png", "trials.parquet"}),
    ],
)
def test_a_full_disk_keeps_what_it_can(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
    lost: list[str],
    kept: set[str],
) -> None:
    use(monkeypatch, AnalyticPool())
    if "Image" in broken:
        monkeypatch.setattr("lotts_search.cli.outputs.save_png", no_space)
    else:
        monkeypatch.setattr(broken, no_space)
    assert call("generate", "red star", "--images", "2", "--out", tmp_path) == 1
    said = capsys.readouterr().err
    assert f"cannot write {lost[0]} to {tmp_path}: No space left on device; written: " in said
    assert {path.name for path in tmp_path.iterdir()} == kept


def half(path: Path) -> None:
    path.write_bytes(b"half")
    no_space()


def test_unfinished_files_are_deleted_and_old_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(OSError, match="No space"), replacing(path) as temporary:
        half(temporary)
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_study_on_a_full_disk_fails_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, AnalyticPool())
    out = tmp_path / "run"
    with monkeypatch.context() as full:
        full.setattr("PIL.Image.Image.save", lambda self, path, **_: half(Path(path)))
        assert call("study", world(tmp_path), "--out", out) == 1
    assert "No space left on device; the same command resumes it" in capsys.readouterr().err.replace("\n", " ")
    assert not [name for name in files(out) if name.endswith((".tmp", ".part"))]
    assert call("study", world(tmp_path), "--out", out) == 0
    assert call("study", world(tmp_path), "--out", tmp_path / "whole") == 0
    assert lasting(out) == lasting(tmp_path / "whole") and pq.read_table(out / "trials.parquet").num_rows > 15


def test_a_study_whose_table_does_not_fit_on_the_disk_has_failed_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, AnalyticPool())
    out = tmp_path / "run"
    write = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        if "study.json" in self.name and (out / "study.json").is_file():
            no_space()
        return write(self, text, **options)

    with monkeypatch.context() as disk:
        disk.setattr("pyarrow.parquet.write_table", no_space)
        disk.setattr(Path, "write_text", full)
        assert call("study", world(tmp_path), "--out", out) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "No space left on device; what is finished is kept, and the same command resumes it" in said
    study = json.loads((out / "study.json").read_text())
    assert study["status"] == "failed" and "No space left" in study["error"]
    assert not [name for name in files(out) if name.endswith(".tmp")]
    assert call("study", world(tmp_path), "--out", out) == 0
    assert json.loads((out / "study.json").read_text())["status"] == "done"
    assert call("study", world(tmp_path), "--out", tmp_path / "whole") == 0
    assert lasting(out) == lasting(tmp_path / "whole")


@pytest.mark.parametrize("make", [lambda out: out.write_text(""), lambda out: (out / "x").mkdir(parents=True)])
def test_the_folder_of_a_study_is_checked_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
) -> None:
    use(monkeypatch, RuntimeError("a model was loaded"))
    out = tmp_path / "run"
    make(out)
    assert call("study", world(tmp_path), "--out", out) == 2
    assert call("study", world(tmp_path), "--out", out / "below" if out.is_file() else out, "--dry-run") == 2
    said = capsys.readouterr().err
    assert said.count(str(out)) == 2 and "unexpected" not in said


def test_ctrl_c_before_a_prompt_is_finished_ends_the_demo_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped(AnalyticPool):
        def submit(self, work):  # type: ignore[no-untyped-def]
            os.kill(os.getpid(), signal.SIGINT)
            return super().submit(work)

    with Stopped() as pool:
        use(monkeypatch, pool)
        changes = {
            "models": [str(world(tmp_path).parent / "analytic")],
            "strategies": ["lotts", "best-of-n"],
            "metrics": [],
            "prompts": ["red star"],
        }
        with pytest.raises(SystemExit) as ended:
            run_demo(changes, Compute(True), tmp_path / "demo", "lotts-search demo", False)
    assert ended.value.code == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "stopped before a prompt was finished; the same command resumes"


@pytest.mark.parametrize("where", ["loading", "reading"])
def test_ctrl_c_at_any_time_ends_with_130_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Compute, "pool", stop) if where == "loading" else monkeypatch.setattr(
        "lotts_search.cli.run_search.Request.check", stop
    )
    assert call("generate", "red star", "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"


def test_ctrl_c_during_the_imports_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-m", "lotts_search", "models"],
        check=False, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")
