"""The command in ``best.png`` repeats the search, for every value that the command line accepts."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lotts_search.cli import main, run_search
from lotts_search.cli.outputs import folder_name, prepare
from lotts_search.cli.run_search import Request
from lotts_search.cli.run_study import _line
from lotts_search.errors import BadInput, Notice

PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
OPTION = st.sampled_from(["--", "--debug", "--help", "-h", "-s", "--json", "--negative=x", "--set", "-o out"])
TEXT = PLAIN | OPTION | PLAIN.map(lambda text: f"-{text}")
PROMPT = TEXT.filter(lambda text: text.strip())
FILE = PROMPT.filter(lambda text: "/" not in text)
NUMBER = st.floats(0, allow_nan=False, allow_infinity=False)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "--nfe": NUMBER,
        "--images": st.integers(0, 10**12),
        "--flops": NUMBER,
        "--as": st.sampled_from(["sdxl", "flux+tiny"]),
        "--seconds": NUMBER,
        "--target": st.floats(allow_nan=False, allow_infinity=False),
        "--seed": st.integers(-(2**63), 2**63 - 1),
        "--steps": st.integers(1, 1000),
        "--guidance": st.floats(allow_nan=False, allow_infinity=False),
        "--eta": NUMBER,
        "--solver": st.sampled_from(["dpm", "ddim"]),
        "--negative": TEXT,
        "--set": st.sampled_from(["refinements=4", "ratio=0.30000000000000004", "high=A good {}, = and -"]),
        "--size": st.sampled_from(["64x64", "128"]),
        "--batch": st.sampled_from(["2", "1000000", "2,4,8,16", "1,2"]),
        "--model": TEXT,
        "--strategy": TEXT,
        "--verifier": TEXT,
        "--rewriter": TEXT,
        "--set-rewriter": st.sampled_from(["timeout=5", "instruction=Say it, again = -"]),
        "--dtype": st.sampled_from(["float32", "bfloat16"]),
    },
)


def request_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Request:
    """Return the request that the command line makes from these words."""
    found: list[Request] = []
    monkeypatch.setattr(run_search, "run", lambda request, *_: found.append(request))
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code in (0, None), words
    return found[0]


@given(PROMPT, OPTIONS)
@example("a fox", {"--negative": "--debug"})
@settings(max_examples=60, deadline=None)
def test_the_command_of_a_search_makes_the_same_request(prompt: str, options: dict[str, Any]) -> None:
    words = [f"{name}={value}" for name, value in options.items()]
    with pytest.MonkeyPatch.context() as monkeypatch:
        request = request_of(["generate", *words, "--", prompt], monkeypatch)
        assert request.prompt == prompt
        again = shlex.split(request.line())
        assert again[0] == "lotts-search"
        assert request_of(again[1:], monkeypatch) == request


@given(PROMPT, FILE, FILE)
@settings(max_examples=40, deadline=None)
def test_the_command_of_a_refinement_makes_the_same_request(prompt: str, image: str, mask: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        request = request_of(["refine", f"--prompt={prompt}", f"--mask={mask}", "--", image], monkeypatch)
        assert (request.prompt, request.image, request.mask) == (prompt, Path(image), Path(mask))
        assert request_of(shlex.split(request.line())[1:], monkeypatch) == request


def called_with(run: str, words: list[str]) -> tuple[Any, ...]:
    """Return the arguments with which the command line calls ``run``."""
    found: list[tuple[Any, ...]] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, lambda *arguments: found.append(arguments))
        with pytest.raises(SystemExit) as ended:
            main(words)
    assert ended.value.code in (0, None), words
    return found[0]


COMPUTE = st.sampled_from(
    [
        [],
        ["--local"],
        ["--address=-x:1", "--generators=3"],
        ["--device=cuda:0", "--batch=4", "--place=gpus=0.5", "--place=label.a=b"],
        ["--address=h:1", "--limit=answer-s=60", "--limit=attempts=5", "--ship=my_masks", "--ship=lotts_search"],
    ]
)


@given(FILE, st.none() | FILE, COMPUTE, st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None)
def test_the_command_of_a_study_resumes_it(file: str, out: str | None, compute: list[str], drivers: int) -> None:
    run, more = "lotts_search.cli.run_study.run", [] if out is None else [f"--out={out}"]
    given = called_with(run, ["study", *compute, *more, f"--drivers={drivers}", "--", file])
    study, where, folder, _, _, many = given
    assert study == Path(file) and (folder, many) == (out, drivers)
    assert called_with(run, shlex.split(_line(study, folder, where, many))[1:]) == given


@given(NUMBER, NUMBER, FILE, COMPUTE)
@settings(max_examples=30, deadline=None)
def test_the_command_of_a_demo_resumes_it(nfe: float, seconds: float, out: str, compute: list[str]) -> None:
    words = ["demo", f"--nfe={nfe}", f"--seconds={seconds}", f"--out={out}", "--model=-m", "--model=b", *compute]
    given = called_with("lotts_search.cli.run_demo.run", words)
    changes, _, folder, command, _ = given
    assert (changes["budgets"], changes["seconds"], folder) == ({"nfe": nfe}, seconds, Path(out))
    assert called_with("lotts_search.cli.run_demo.run", shlex.split(command)[1:]) == given


@given(
    st.lists(FILE, min_size=1, max_size=3),
    st.lists(
        st.sampled_from(
            ["--out=-o", "--metric=a b", "--cost=flops", "--as=sdxl", "--baseline=-x", "--baseline=L 2", "--prompts=0",
             "--trees=3", "--figures", "--no-figures", "--device=cuda"]
        )
    ),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_the_command_of_a_report_makes_the_same_report(runs: list[str], options: list[str]) -> None:
    wanted, _ = called_with("lotts_search.cli.write_report.run", ["report", *options, "--", *runs])
    assert wanted.runs == [Path(run) for run in runs]
    again, _ = called_with("lotts_search.cli.write_report.run", shlex.split(wanted.command)[1:])
    assert again == wanted


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        (["generate", "-foo", "--local"], "prompt"),
        (["generate", "-sunset over the sea"], "prompt"),  # -s is an option with the value "unset over the sea"
        (["generate", "--steps", "4", "-1 star"], "prompt"),
        (["refine", "-x.png", "--prompt", "-foo"], "image"),
        (["study", "-s.yaml", "--dry-run"], "file"),
    ],
)
def test_an_argument_that_begins_with_a_dash_is_refused_with_the_way_to_write_it(
    words: list[str], argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    word = next(word for word in words if word.startswith("-") and not word.startswith("--"))
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ended.value.code == 2
    written = f"lotts-search {words[0]} [OPTIONS] -- {shlex.quote(word)}"
    assert f"If {word!r} is the {argument}, write it last, after two dashes: {written}" in said


def test_a_misspelled_option_is_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--guidence", "3", "a fox"])
    said = capsys.readouterr().err
    assert "--guidance" in said and "after two dashes" not in said


@given(PROMPT, st.sampled_from(["lotts", "my_package.search:Own", "best-of-n"]))
@example("狐" * 40, "lotts")
@example("a-" * 60, "lotts")
@example("a" * 79 + " fox", "lotts")
@settings(max_examples=200, deadline=None)
def test_folder_names_are_valid_and_differ_between_commands(prompt: str, strategy: str) -> None:
    one, other = (folder_name(prompt, strategy, f"lotts-search generate --seed {seed}") for seed in (1, 2))
    assert one != other
    assert 8 <= len(one.encode()) <= 128 and not {"/", "--"} & {one[i : i + n] for n in (1, 2) for i in range(len(one))}
    assert not one.startswith((".", "-"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("狐狸在雪地里", "一只猫"),
        ("a very long prompt that goes on and on and on until the name is cut: fox",
         "a very long prompt that goes on and on and on until the name is cut: hen"),
        ("A fox!", "a fox?"),
    ],
)  # fmt: skip
def test_different_prompts_have_different_folders(one: str, other: str) -> None:
    names = [folder_name(prompt, "lotts", shlex.join(["lotts-search", "generate", prompt])) for prompt in (one, other)]
    assert names[0] != names[1]
    assert one.split()[0].lower() in names[0], "the words of any language are in the name"


@pytest.mark.parametrize(("name", "value"), [("prompt", "a\0b"), ("negative", "\udc80"), ("prompt", "\ud83e fox")])
def test_texts_that_files_cannot_store_are_refused_before_anything_starts(name: str, value: str) -> None:
    request = Request("generate", "a fox", "shapes-sd", "lotts", "shapes-reward", 0)
    setattr(request, name, value)
    with pytest.raises(BadInput, match=f"{name}: a text holds"):
        request.check()


def test_the_output_folder_is_checked_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert prepare(tmp_path / "new" / "below", "").is_dir()
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none"), Path("/proc")):
        with pytest.raises(BadInput, match=f"--out {place}: cannot write there"):
            prepare(place, "")
    with pytest.raises(SystemExit) as ended:
        main(["generate", "a fox", "--local", "--out", str(tmp_path / "file")])
    assert ended.value.code == 2 and "cannot write there" in capsys.readouterr().err
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    with pytest.raises(BadInput, match="dangling: cannot write there"):
        prepare(tmp_path / "dangling", "")
    for name in ("best.png", "trials.parquet", "search.html"):
        (tmp_path / name).mkdir()
        with pytest.raises(BadInput, match=f"--out {tmp_path}: {name} is a folder there"):
            prepare(tmp_path, "")
        (tmp_path / name).rmdir()


def test_image_and_mask_are_cut_alike_to_the_size_of_the_model(tmp_path: Path) -> None:
    request = Request("refine", "a fox", "shapes-sd", "lotts", "shapes-reward", 0)
    request.image, request.mask = tmp_path / "wide.png", tmp_path / "mask.png"
    Image.new("RGB", (128, 64), "navy").save(request.image)
    Image.new("L", (128, 64), "white").save(request.mask)
    with pytest.warns(Notice, match=r"wide\.png"):
        image, settings = request.pixels((64, 64))
    assert image is not None and image.shape == (64, 64, 3) and "mask" in settings
    Image.new("L", (64, 64), "white").save(request.mask)
    with pytest.raises(BadInput, match=r"the mask .*mask\.png"), pytest.warns(Notice, match=r"wide\.png"):
        request.pixels((64, 64))


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["generate", "a fox", "--local", "--out="], "--out"),
        (["generate", "a fox", "--local", "-o", ""], "--out"),
        (["refine", "", "--prompt", "a fox", "--local"], "image"),
        (["refine", "a.png", "--prompt", "a fox", "--local", "--mask", ""], "--mask"),
        (["study", "a.yaml", "--dry-run", "--out", ""], "--out"),
        (["study", ""], "STUDY.yaml"),
        (["submit", "a.yaml", "--include", "b.py", "--include", ""], "--include"),
        (["report", "runs/a", ""], "RUN..."),
        (["status", ""], "RUN"),
        (["demo", "--out", ""], "--out"),
        (["serve", "--keys", ""], "--keys"),
        (["bench", "ratios", "--svg", ""], "--svg"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_an_empty_path_is_not_the_current_folder(
    words: list[str], label: str, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([word or empty if not word.endswith("=") else word + empty for word in words])
    said = f"error: the path of {label} is empty: name a folder or a file; the current folder is .\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, said)
    assert not list(tmp_path.iterdir())


def test_what_a_search_starts_from_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "best.png")
    (tmp_path / "link.png").symlink_to("best.png")
    for words in (["best.png"], ["link.png"], ["other.png", "--mask", "link.png"]):
        (tmp_path / "other.png").write_bytes((tmp_path / "best.png").read_bytes())
        named = [str(tmp_path / word) if word.endswith(".png") else word for word in words]
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    "refine",
                    *named,
                    "--prompt",
                    "center red star on gray",
                    "--local",
                    "--out",
                    str(tmp_path / "x" / ".."),
                ]
            )
        assert ended.value.code == 2
        assert f"a result would replace {named[-1]}, which the search starts from" in capsys.readouterr().err
    assert prepare(tmp_path / "new", "", [tmp_path / "best.png", tmp_path / "other.png"]).is_dir()


def test_replacing_other_results_is_reported(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("command", "lotts-search generate 'a hen'")
    Image.new("RGB", (4, 4)).save(tmp_path / "best.png", pnginfo=info)
    with pytest.warns(Notice, match="holds the results of another search, which are replaced: lotts-search .* 'a hen'"):
        prepare(tmp_path, "lotts-search generate 'a fox'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(tmp_path, "lotts-search generate 'a hen'")
        Image.new("RGB", (4, 4)).save(tmp_path / "best.png", format="JPEG")  # has no texts
        prepare(tmp_path, "")
        (tmp_path / "best.png").write_bytes(b"no image")
        prepare(tmp_path, "")
