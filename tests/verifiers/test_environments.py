"""Verifiers in processes of other environments: no score meets another image, whatever the process does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lotts_search import registry, search
from lotts_search.actors.ray_pool import RayPool
from lotts_search.cli import main
from lotts_search.engine.local_pool import LocalPool
from lotts_search.errors import BadInput, Failure, Notice, PoolClosed
from lotts_search.verifiers.batcher import ScoreBatcher
from lotts_search.verifiers.environments import frames, hosted
from lotts_search.verifiers.environments.check import check_verifier_there
from lotts_search.verifiers.environments.hosted import HostedVerifier, load_hosted
from lotts_search.verifiers.environments.prepare import VARIABLE, Environment, prepare
from lotts_search.verifiers.environments.recipe import Recipe, find_recipe, names, read_recipe
from lotts_search.work.requests import Bytes, Judge, Result, Score, ScoreMosaics
from tests.study.worlds import lasting
from tests.tiny import tiny_backbone
from tests.verifiers.foreign import ROGUE, prepare_for, write_judges
from tests.verifiers.stub_judges import Brightness

STUB = "tests.verifiers.stub_judges:Brightness"
Load = Callable[..., HostedVerifier]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the environment of the stub judges."""
    path = tmp_path_factory.mktemp("environments")
    prepare_for(Brightness, path)
    return path


@pytest.fixture
def load(folder: Path) -> Iterator[Load]:
    """Return a function that loads the stub judge in its environment."""
    opened: list[HostedVerifier] = []

    def of(judge: type[Any] = Brightness, **values: Any) -> HostedVerifier:
        opened.append(load_hosted(judge, values, folder=folder))
        return opened[-1]

    yield of
    for verifier in opened:
        verifier.close()


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[HostedVerifier]:
    verifier = load_hosted(Brightness, {}, folder=folder)
    yield verifier
    verifier.close()


def images_of(*levels: int) -> Bytes:
    return np.stack([np.full((3, 5, 3), level, np.uint8) for level in levels])


def alive(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; fail after a minute."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_scores_are_those_of_the_class_in_another_process(load: Load) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 4, 3), np.uint8)[:, ::2]  # not contiguous
    prompts = ["a ★", "b", "print"]
    there = load(bias=2.5).score(prompts, images)
    assert there.dtype == np.float32
    assert np.array_equal(there, Brightness.load(bias=2.5).score(["a", "b", "c"], images))


def request(verifier: str, prompt: str, rng: np.random.Generator) -> tuple[Judge, list[float]]:
    """Return a request of one image or of one to five mosaics, and the brightness of each image."""
    levels = rng.integers(0, 256, 3)
    if rng.random() < 0.5:
        return Score(verifier, prompt, images_of(*levels)[0]), [float(levels[0])]
    choices = rng.integers(0, 3, (rng.integers(1, 6), 1, 2))
    expected = [(3 * levels[left] + 2 * levels[right]) / 5 for left, right in choices[:, 0]]  # of five columns
    return ScoreMosaics(verifier, prompt, images_of(*levels), choices), expected


def check_answer(prompt: str, expected: list[float], answer: Future[Result], seconds: float = 0) -> None:
    """Assert that a request has the scores of its own images, or an error where its prompt causes one."""
    error = answer.exception(seconds)
    if prompt in ("a", "print") or prompt.startswith("once"):
        result = answer.result(seconds)
        scores = result.scores if result.score is None else (result.score,)
        assert scores == pytest.approx(expected, abs=1e-4)
    else:
        assert isinstance(error, BadInput if prompt == "refuse" else Failure), prompt


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.sampled_from(["a", "a", "a", "nan", "few", "raise", "refuse", "print", "once"]), max_size=12),
    pad=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_score_meets_another_image(
    shared: HostedVerifier, tmp_path_factory: pytest.TempPathFactory, prompts: list[str], pad: bool, seed: int
) -> None:
    """Among a death, errors, missing scores and NaN, each image and each mosaic has its own score or an error."""
    batcher, rng = ScoreBatcher(shared, batch=4, pad=pad), np.random.default_rng(seed)
    died = tmp_path_factory.mktemp("once") / "died"
    asked = []
    for prompt in (f"once {died}" if prompt == "once" else prompt for prompt in prompts):
        work, expected = request("stub", prompt, rng)
        asked.append((prompt, expected, batcher.submit(work)))
        if rng.random() < 0.3:
            batcher.tick()
    while batcher.tick():
        pass
    for each in asked:
        check_answer(*each)


@pytest.mark.parametrize("where", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_each_request_of_a_pool_has_the_scores_of_its_images_or_an_error(
    where: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the judge's process dies or hangs."""
    monkeypatch.setenv(VARIABLE, str(folder))
    text, rng = f"{STUB}:batch=3,timeout=2", np.random.default_rng(0)
    prompts = ["a"] * 16 + ["nan", "few", "raise", "refuse", "print", "print", "die", "die", "hang"]
    with pool_of(where, text) as pool:
        asked = []
        for prompt in rng.permutation(prompts):
            work, expected = request(text, str(prompt), rng)
            asked.append((str(prompt), expected, pool.submit(work)))
        for each in asked:
            check_answer(*each, seconds=240)


def pool_of(where: str, verifier: str) -> LocalPool | RayPool:
    """Return a pool with a verifier; on Ray without a model."""
    if where == "ray":
        return RayPool("fake", [verifier], engine="tests.actors.fakes:make_engine")
    return LocalPool(tiny_backbone(), {verifier: registry.load_verifier(verifier)})


def test_a_search_goes_on_where_its_judge_dies_of_some_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    with pool_of("local", STUB) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        result = search("moody", strategy="best-of-n", pool=pool, images=5, steps=1, seed=3)
    images = [result.images[row.trial_id] for row in result.trials if row.kind == "sample"]
    fatal = sum(int(image.sum()) % 3 == 0 for image in images)
    assert len(images) == 5 and 0 < fatal < 5
    assert result.failures.count == fatal and "died of signal SIGKILL" in str(result.failures)
    for row in result.trials:
        if row.kind == "sample" and row.score is not None:
            assert row.score == pytest.approx(result.images[row.trial_id].mean(), rel=1e-5)


def test_a_search_whose_judge_always_dies_ends_with_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    with pool_of("local", STUB) as pool, pytest.raises(Failure, match=r"^verifier '.*' died of signal SIGKILL$"):
        search("die", strategy="best-of-n", pool=pool, images=4, steps=2)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_answers_are_matched_by_identity(data: st.DataObject) -> None:
    """Answers in any order give the scores of the images; with one missing, double or foreign they give none."""
    levels = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    rows = [frames.identity(1, row, "p", memoryview(bytes([level]))) for row, level in enumerate(levels)]
    scores = np.arange(len(rows), dtype="<f4")
    order = data.draw(st.permutations(range(len(rows))))
    answered, values = [rows[i] for i in order], scores[order]
    assert np.array_equal(hosted._by_identity(rows, answered, bytearray(values.tobytes()), "stub"), scores)
    fault = data.draw(st.sampled_from(["missing", "foreign", "double", "none"]))
    if fault == "missing":
        answered, values = answered[1:], values[1:]
    elif fault == "foreign":
        answered[0] = frames.identity(2, 0, "p", memoryview(b"\0"))
    elif fault == "double":
        answered, values = [*answered, answered[0]], np.append(values, values[:1])
    given: Any = None if fault == "none" else answered
    with pytest.raises(Failure, match="verifier 'stub' answered with"):
        hosted._by_identity(rows, given, bytearray(values.astype("<f4").tobytes()), "stub")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("none", None),
        ("shuffled", None),
        ("late", None),
        ("few", "answered with 4 scores for 5 images: 1 of them have none"),
        ("double", "answered with 6 scores for 5 images"),
        ("confused", "answered with 5 scores for 5 images: 1 of them have none, 1 are of other images"),
        ("noise", "broke the protocol: the answer is not a frame"),
    ],
)
def test_scores_of_a_process_with_a_fault_are_matched_or_refused(fault: str, message: str | None) -> None:
    verifier = HostedVerifier("rogue", [sys.executable, "-c", ROGUE, fault], "a:B", {}, timeout=60.0)
    try:
        for levels in ((5, 4, 3, 2, 1), (1, 2, 3, 4, 5)):
            if message is None:
                assert verifier.score(list("abcde"), images_of(*levels)).tolist() == list(levels)
            else:
                with pytest.raises(Failure, match=f"verifier 'rogue' {message}"):
                    verifier.score(list("abcde"), images_of(*levels))
    finally:
        verifier.close()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("die", "died of signal SIGKILL"),
        ("exit", "died with exit code 3"),
        ("raise", "failed: ValueError: cannot judge this"),
        ("few", r"scores of shape \(0,\) for 1 images"),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_call_works(load: Load, prompt: str, message: str) -> None:
    verifier = load()
    with pytest.raises(Failure, match=message):
        verifier.score([prompt], images_of(1))
    assert verifier.score(["a"], images_of(7)).tolist() == [7]


def test_refused_images_stay_refused(load: Load) -> None:
    with pytest.raises(BadInput, match=r"^images must be larger$"):
        load().score(["refuse"], images_of(1))


def test_a_process_that_dies_is_started_again_and_the_call_repeated(load: Load, tmp_path: Path) -> None:
    verifier = load()
    assert verifier.score([f"once {tmp_path / 'died'}", "a"], images_of(3, 4)).tolist() == [3, 4]
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize(
    ("verb", "message"), [("hang", "gave no answer within 1.5 s"), ("die", "SIGKILL"), ("few", r"shape \(0,\)")]
)
def test_only_the_images_at_fault_fail(load: Load, verb: str, message: str) -> None:
    batcher = ScoreBatcher(load(timeout=1.5), batch=3, pad=False)
    prompts = ["a", verb, "b"]
    futures = [batcher.submit(Score("s", p, images_of(i)[0])) for i, p in enumerate(prompts)]
    assert batcher.tick()
    assert [future.result(0).score for future in futures[::2]] == [0, 2]
    with pytest.raises(Failure, match=message):
        futures[1].result(0)


def test_a_judge_that_always_dies_is_given_up(load: Load) -> None:
    verifier = load()
    for _ in range(hosted.LOST):
        with pytest.raises(Failure, match="SIGKILL"):
            verifier.score(["die"], images_of(1))
    with pytest.raises(Failure, match=f"given up: {hosted.LOST} calls in a row had no answer"):
        verifier.score(["a"], images_of(1))


@pytest.mark.parametrize(
    ("bias", "message"), [(1500.0, "FileNotFoundError: no weights"), (2500.0, "cannot be loaded: it died of signal")]
)
def test_a_verifier_that_does_not_load_is_a_failure(load: Load, bias: float, message: str) -> None:
    with pytest.raises(Failure, match=message):
        load(bias=bias)


def test_closing_ends_the_call_and_all_processes(load: Load, tmp_path: Path) -> None:
    verifier, file = load(), tmp_path / "processes"
    raised: list[BaseException] = []

    def call() -> None:
        try:
            verifier.score([f"spawn {file}", "hang"], images_of(1, 2))
        except PoolClosed as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: file.exists() and len(file.read_text().split()) == 2)
    verifier.close()
    thread.join(60)
    assert len(raised) == 1
    wait_until(lambda: not any(map(alive, map(int, file.read_text().split()))))


def test_no_process_outlives_a_parent_that_is_killed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "processes"
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from lotts_search.verifiers.environments.hosted import load_hosted\n"
        "from tests.verifiers.stub_judges import Brightness\n"
        "verifier = load_hosted(Brightness, {}, folder=Path(sys.argv[1]))\n"
        "verifier.score(['spawn ' + sys.argv[2], 'hang'], np.zeros((2, 4, 4, 3), np.uint8))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(folder), str(file)], cwd=Path(__file__).parents[2])
    try:
        wait_until(lambda: file.exists() and len(file.read_text().split()) == 2)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(map(alive, map(int, file.read_text().split()))))


def test_a_local_pool_closes_it_and_does_not_wait_for_its_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    text = f"{STUB}:bias=1"
    verifier = registry.load_verifier(text)
    assert isinstance(verifier, HostedVerifier)
    with LocalPool(tiny_backbone(), {text: verifier}) as pool:
        assert pool.submit(Score(text, "a", images_of(9)[0])).result(60).score == 10
        hanging = pool.submit(Score(text, "hang", images_of(9)[0]))
    assert isinstance(hanging.exception(60), PoolClosed)
    with pytest.raises(PoolClosed):
        verifier.score(["a"], images_of(1))


def test_an_environment_that_is_not_ready_is_named_with_the_command(tmp_path: Path) -> None:
    environment = Environment.of(Recipe("stub"), tmp_path)

    def refusal() -> str:
        with pytest.raises(Failure, match=r"run: lotts-search verifier-env my-judge$") as caught:
            environment.require("my-judge")
        return str(caught.value)

    assert environment.state == "missing" and "is not prepared" in refusal()
    prepare(environment)
    environment.require("my-judge")
    changed = Environment.of(Recipe("stub", summary="another"), tmp_path)
    assert changed.state == "stale" and environment.state == "ready"
    environment.python.unlink()
    assert environment.state == "stale" and "is stale" in refusal()
    (environment.path / "environment.json").unlink()
    assert environment.state == "incomplete" and "not prepared to the end" in refusal()


def test_what_cannot_be_installed_leaves_no_environment(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(f"[[steps]]\ninstall = ['{tmp_path}/no-1-py3-none-any.whl']\n")
    environment = Environment.of(read_recipe(tmp_path / "bad.toml"), tmp_path)
    with pytest.raises(Failure, match=r"cannot be prepared: .* ended with code 1; the log is .*bad\.log"):
        prepare(environment)
    assert environment.state == "missing"
    assert "no-1-py3-none-any.whl" in (tmp_path / "bad.log").read_text()


def test_files_are_added_and_another_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        "[[files]]\nto = 'a/b.txt'\ntext = 'x'\n[[files]]\nto = 'c.txt'\ncopy = 'a/b.txt'\n"
    )
    environment = Environment.of(read_recipe(tmp_path / "a.toml"), tmp_path)
    steps: list[float] = []
    prepare(environment, on_step=lambda share, what: steps.append(share))
    assert steps == sorted(steps) and 0 <= steps[0] < steps[-1] < 1
    (packages,) = environment.path.glob("lib/python*/site-packages")
    assert (packages / "c.txt").read_text() == "x"
    with pytest.raises(BadInput, match=r"needs Python 2\.7, not 3\."):
        prepare(Environment.of(Recipe("old", python=("2.7",)), tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sumary = 'x'", "did you mean 'summary'"),
        ("[[steps]]\nno_deps = true", "needs `install`"),
        ("python = [3.11]", "python of .* must be a list"),
        ("[[files]]\nto = '../x'\ntext = ''", "outside site-packages"),
        ("[[files]]\nto = 'x'", "either `copy` or `text`"),
        ("lock = 'no.txt'", "cannot be read"),
        ("= 1", "is not TOML"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(BadInput, match=message):
        find_recipe("recipe.toml", tmp_path)


def test_the_recipes_of_this_package_pin_what_they_install() -> None:
    assert names() == ["hpsv2-package", "image-reward-package", "musiq"]
    for name in names():
        recipe = find_recipe(name)
        pinned = {line.partition("==")[0].lower().replace("_", "-") for line in recipe.lock.splitlines()}
        for requirement in [each for step in recipe.steps for each in step.install]:
            package = requirement.partition("==")[0].partition("<")[0].lower()
            assert "==" in requirement or package in pinned, f"{name} does not pin {requirement}"
    with pytest.raises(BadInput, match="did you mean 'hpsv2-package'"):
        find_recipe("hpsv2-pakage")


def test_settings_that_json_cannot_hold_are_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="cannot be sent to another process"):
        load_hosted(Brightness, {"bias": np.float32}, folder=folder)


def test_the_check_of_an_environment_imports_the_verifier(folder: Path) -> None:
    assert check_verifier_there(Brightness, STUB, folder) == "its module can be imported"


def test_the_version_of_an_environment_is_part_of_what_a_search_is_named_by(tmp_path: Path) -> None:
    """A search that is resumed with another recipe would mix scores."""
    write_judges(tmp_path)
    sys.path.insert(0, str(tmp_path))
    try:
        before = registry.verifier_contents("conflicting_judges:Old")
        (tmp_path / "old.toml").write_text("summary = 'changed'")
        assert registry.verifier_contents("conflicting_judges:Old") != before
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["conflicting_judges"]


@pytest.mark.parametrize("where", [["--local"], pytest.param(["--generators", "1"], marks=pytest.mark.slow)])
def test_judges_with_conflicting_packages_serve_one_study(
    tmp_path: Path, where: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_judges(tmp_path)
    (tmp_path / "study.yaml").write_text(
        "strategies: [best-of-n]\nprompts: {from: shapes-test, count: 1}\nbudgets: {nfe: 20}\n"
        "verifier: conflicting_judges:Old\nmetrics: [conflicting_judges:New]\nimages: none\n"
    )
    monkeypatch.setenv(VARIABLE, str(tmp_path / "environments"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(tmp_path)
    study = ["study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run"), *where]

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(words))
        return int(end.value.code or 0), *capsys.readouterr()

    try:
        code, _, said = run(*study)
        assert code and "run: lotts-search verifier-env conflicting_judges:" in said
        for name in ("Old", "New"):
            code, told, said = run("verifier-env", f"conflicting_judges:{name}", "--json")
            assert code == 0, said
            assert json.loads(told)[f"conflicting_judges:{name}"]["state"] == "ready"
        code, _, said = run(*study)
        assert code == 0, said
    finally:
        sys.modules.pop("conflicting_judges", None)
    judged = [(row["score"], row["metric_New"]) for row in lasting(tmp_path / "run") if row["metric_New"] is not None]
    assert len(judged) >= 2 and all(abs(2 * old - new) < 1e-3 for old, new in judged)
