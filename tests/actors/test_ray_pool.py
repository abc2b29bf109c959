"""The Ray pool, with a fake engine in real actors."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

from lotts_search import registry
from lotts_search.actors.connection import environment
from lotts_search.actors.crew import Limits
from lotts_search.actors.engine_thread import EngineThread
from lotts_search.actors.placement import Placement
from lotts_search.actors.ray_pool import RayPool
from lotts_search.actors.ray_worker import owned
from lotts_search.actors.worker_actor import Reply, WorkerActor
from lotts_search.errors import BadInput, Failure, Notice, notice
from lotts_search.verifiers.clip_score import ClipScore
from lotts_search.work.requests import Located, Region, Result, Rewrite, Score, State, Usage
from tests.actors.fakes import INFO, FakeEngine, segment
from tests.verifiers.published import clip_folder

pytestmark = pytest.mark.ray

FAKES: dict[str, Any] = {"engine": "tests.actors.fakes:make_engine", "scorer": "tests.actors.fakes:make_scorer"}
CLIP = "clip-score:weights=clip"
WAIT = 240


def make(**options: Any) -> RayPool:
    return RayPool("fake", **{"batch": 3, **FAKES, **options})


def test_notices_of_the_actors_reach_the_driver_once() -> None:
    with pytest.warns(Notice) as caught, RayPool("partly", generators=2, batch=3, **FAKES):
        pass
    assert [str(each.message) for each in caught if each.category is Notice] == ["the adapter was merged in part"]


def test_notices_of_later_work_reach_the_driver_once_and_in_its_thread() -> None:
    def reported(caught: list[warnings.WarningMessage]) -> list[str]:
        return [str(each.message) for each in caught if each.category is Notice]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with make(generators=2, verifiers=["brightness"]) as pool:
            assert reported(caught) == []
            for future in [pool.submit(segment(seed, prompt="say it is cut")) for seed in range(4)]:
                future.result(WAIT)
            pool.submit(segment(0)).result(WAIT)
            assert reported(caught) == ["it is cut"]
            with pytest.raises(Failure, match="it is bad"):
                pool.submit(segment(1, prompt="say bad")).result(WAIT)
            pool.submit(segment(2)).result(WAIT)
            assert reported(caught) == ["it is cut", "bad"]
            pool.submit(Score("brightness", "odd", np.zeros((8, 8, 3), np.uint8))).result(WAIT)
        assert reported(caught) == ["it is cut", "bad", "an odd image"]


def test_an_actor_keeps_other_warnings_for_its_own_log() -> None:
    async def started() -> Reply:
        return await WorkerActor("h", f"{__name__}:outdated").start()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reply = asyncio.run(started())
    assert reply.notices == ("4 steps are used",)
    assert [str(each.message) for each in caught] == ["an outdated call"]


def outdated() -> tuple[FakeEngine, Any]:
    for text in ("4 steps are used", "4 steps are used"):
        notice(text)
    warnings.warn("an outdated call", DeprecationWarning, stacklevel=1)
    return FakeEngine(4, None), INFO


def test_adapters_and_decoders_at_relative_paths_are_found_by_the_actors(
    ray_up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inks").mkdir()
    (tmp_path / "ink.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    options = {"lora": ["ink.safetensors:0.5", "./inks", "owner/ink"], "preview": "inks"}
    with RayPool("fake", batch=3, backbone_options=options, engine="tests.actors.fakes:make_described") as pool:
        family = json.loads(pool.info.family)
        assert pool.info.loaded == registry.loaded(options)  # a search is named by what was given
    assert family == {
        "lora": [[f"{tmp_path}/ink.safetensors", 0.5], [f"{tmp_path}/inks", 1.0], ["owner/ink", 1.0]],
        "preview": f"{tmp_path}/inks",
    }


def latents(futures: list[Future[Result]]) -> list[Any]:
    states = [future.result(WAIT).state for future in futures]
    return [state.latent for state in states if state is not None]


def expected(count: int) -> list[Any]:
    """Return the latents of the same tasks, computed in this process."""
    thread = EngineThread("here", lambda: (FakeEngine(3, None), INFO))
    return latents([thread.submit(segment(seed)) for seed in range(count)])


def test_results_do_not_hold_shared_memory(ray_up: None) -> None:
    """Searches keep results, so arrays must not be views of Ray's object store."""
    with make(verifiers=["brightness"]) as pool:
        for _ in range(2):
            state = pool.submit(segment(0)).result(WAIT).state
            assert state is not None and state.latent.flags.owndata and state.latent.flags.writeable


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
def test_arrays_at_any_depth_of_a_result_become_its_own(shape: tuple[int, ...]) -> None:
    shared = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    shared.flags.writeable = False
    located = Located(shared > 1, shared, {"map": shared})
    region = Region(shared > 1, shared, ("seed 0",), 1)
    result = Result(Usage(nfe=2), State(shared, 3, 3, shared, region=region), located=located, prompts=("a", "b"))
    found = owned(result)
    assert found is result and found.prompts == ("a", "b") and found.usage.nfe == 2
    arrays = [found.state.latent, found.state.previous, found.state.region.origin, found.located.stages["map"]]
    for array in arrays:
        assert array.flags.owndata and array.flags.writeable and np.array_equal(array, shared)
    assert found.state.region.mask.dtype == bool


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "zombie" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc").is_dir() else True
    except (ProcessLookupError, FileNotFoundError):
        return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_the_work_of_a_verifier_is_divided_among_its_actors(ray_up: None) -> None:
    with make(verifiers=["brightness"], placement=Placement(verifiers=2)) as pool:
        images = [np.full((8, 8, 3), level, np.uint8) for level in range(10)]
        found = [pool.submit(Score("brightness", "a square", image)) for image in images]
        assert [future.result(WAIT).score for future in found] == list(range(10))
        assert {future.result(WAIT).actor for future in found} == {"brightness-0", "brightness-1"}


@pytest.mark.parametrize("generators", [1, 2])
def test_results_equal_those_of_one_process_for_any_number_of_actors(ray_up: None, generators: int) -> None:
    with make(generators=generators, verifiers=["brightness"]) as pool:
        assert pool.info == INFO
        futures = [pool.submit(segment(seed)) for seed in range(20)]
        assert np.array_equal(latents(futures), expected(20))
        results = [future.result(0) for future in futures]
        assert {r.actor for r in results} == {f"generator-{i}" for i in range(generators)}
        assert all(r.attempts == 1 and r.usage.nfe_wasted == 0 and r.node and r.queue_s >= 0 for r in results)
        assert all(r.finished >= r.started > 0 for r in results)
        image = np.full((8, 8, 3), 9, dtype=np.uint8)
        assert pool.submit(Score("brightness", "a square", image)).result(WAIT).score == 9
        assert pool.verifiers == ("brightness",)
        with pytest.raises(BadInput, match="unknown verifier 'brightnes'; did you mean 'brightness'"):
            pool.submit(Score("brightnes", "a square", image))


def test_failures_of_tasks_keep_their_type_and_are_not_retried(ray_up: None) -> None:
    with make() as pool:
        before = pool.workers()
        with pytest.raises(BadInput, match=r"^the prompt is empty$"):
            pool.submit(segment(0, prompt="")).result(WAIT)
        with pytest.raises(Failure, match=r"^NaN latents at step 0$"):
            pool.submit(segment(0, prompt="nan")).result(WAIT)
        assert pool.workers() == before


def test_an_actor_killed_in_mid_search_is_replaced_and_each_task_charged_once(ray_up: None, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    begun.mkdir()
    with make(generators=2, backbone_options={"begun": str(begun)}) as pool:
        pids = {ready.pid for ready in pool.workers()}
        futures = [pool.submit(segment(seed, prompt=f"hold {go}")) for seed in range(12)]
        while not (victims := {int(p.name) for p in begun.iterdir()} & pids):
            time.sleep(0.01)
        victim = victims.pop()
        os.kill(victim, signal.SIGKILL)
        while len(after := {ready.pid for ready in pool.workers()}) < 2 or victim in after:
            time.sleep(0.05)
        go.touch()
        assert np.array_equal(latents(futures), expected(12))
        results = [future.result(0) for future in futures]
        assert [r.usage.nfe for r in results] == [6.0] * 12
        lost = [r for r in results if r.attempts == 2]
        assert 3 <= len(lost) <= 5  # its batch and at most two spare tasks
        assert all(r.usage.nfe_wasted == 6 * (r.attempts - 1) for r in results)
        assert {"generator-2"} <= {r.actor for r in results} <= {"generator-0", "generator-1", "generator-2"}


def test_cancelled_work_stops_in_its_actor(ray_up: None, tmp_path: Path) -> None:
    """Actors advance three tasks at once, so the last ends only if the others stop."""
    begun = tmp_path / "begun"
    begun.mkdir()
    with make(backbone_options={"begun": str(begun)}) as pool:
        held = [pool.submit(segment(seed, prompt=f"hold {tmp_path / 'never'}")) for seed in range(9)]
        while not any(begun.iterdir()):
            time.sleep(0.01)
        assert all(future.cancel() for future in held)
        assert pool.submit(segment(0)).result(WAIT).usage.nfe == 6
        assert {ready.name for ready in pool.workers()} == {"generator-0"}  # it was not replaced


@pytest.mark.parametrize("poison", ["kill", "break"])
def test_a_task_that_always_kills_its_actor_fails_alone(ray_up: None, poison: str) -> None:
    with make(generators=1) as pool:
        futures = [pool.submit(segment(seed)) for seed in range(3)]
        bad = pool.submit(segment(99, prompt=poison))
        futures += [pool.submit(segment(seed)) for seed in range(3, 6)]
        with pytest.raises(Failure, match=r"lost work: a segment of steps 0\.\.6 .*seed 99.*: 3 workers died"):
            bad.result(WAIT)
        assert np.array_equal(latents(futures), expected(6))


@pytest.mark.parametrize("verifiers", [[], ["brightness"]])
def test_the_constructor_reports_a_broken_model_in_one_clear_message(ray_up: None, verifiers: list[str]) -> None:
    with pytest.raises(BadInput, match=r"^the model folder 'broken' has no model_index.json$"):
        RayPool("broken", verifiers, **FAKES)


def test_relative_paths_of_a_verifier_are_those_of_this_process(
    ray_up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_folder(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)  # the actors' folder is the one in which Ray was started
    image = np.full((8, 8, 3), 9, dtype=np.uint8)
    with RayPool("fake", [CLIP], engine=FAKES["engine"]) as pool:
        score = pool.submit(Score(CLIP, "a red circle", image)).result(WAIT).score
    assert score == pytest.approx(ClipScore.load(weights="clip").score(["a red circle"], image[None])[0], rel=1e-5)


def test_an_engine_that_cannot_be_imported_is_named(ray_up: None) -> None:
    with pytest.raises(Failure, match="No module named 'nowhere_at_all'"):
        RayPool("fake", engine="nowhere_at_all:make")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generators", "must be 1 or more, not 0"),
        ("threads", "must be 1 or more, not 0"),
        ("batch", "has 1 row or more, not 0"),
    ],
)
def test_numbers_are_checked_before_anything_starts(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=f"{name} {message}"):
        make(**{name: 0})


def test_closing_fails_unfinished_work_and_ends_the_actors_but_not_a_ray_that_it_found(
    ray_up: None, tmp_path: Path
) -> None:
    import ray

    pool = make(generators=2)
    pids = [ready.pid for ready in pool.workers()]
    future = pool.submit(segment(0, prompt=f"hold {tmp_path / 'never'}"))
    pool.close()
    pool.close()
    with pytest.raises(Failure, match="the pool was closed before this work was done"):
        future.result(WAIT)
    with pytest.raises(Failure, match="the pool is closed"):
        pool.submit(segment(1))
    assert gone(pids)
    assert ray.is_initialized()


PROGRAM = """
import os, signal
from lotts_search.actors.placement import Placement
from lotts_search.actors.ray_pool import RayPool
from tests.actors.fakes import segment
import psutil
fakes = dict(engine="tests.actors.fakes:make_engine", scorer="tests.actors.fakes:make_scorer")
with RayPool("fake", ["brightness"], batch=3, placement=Placement(object_store_mb=100), **fakes) as pool:
    print(pool.submit(segment(5)).result(200).usage.nfe)
    folder = pool._connection.folder
    children = [child.pid for child in psutil.Process().children(recursive=True)]
    actors = [ready.pid for ready in pool.workers()]
    assert set(actors) <= set(children) and folder.is_dir()
    os.kill(actors[0], signal.SIGKILL)
    print(pool.submit(segment(6)).result(200).usage.nfe)
print(folder.exists())
print(*children)
"""


def test_a_pool_with_a_private_ray_leaves_nothing_behind_and_keeps_standard_output_clean() -> None:
    environ = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=root,
        env={**environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *printed, pids = done.stdout.splitlines()
    assert printed == ["6.0", "6.0", "False"]
    assert gone([int(pid) for pid in pids.split()])
    assert re.fullmatch(r"generator-0 was lost with [01] tasks and is being replaced: .*\n", done.stderr)


JOINER = """
from lotts_search.actors.placement import Placement
from lotts_search.actors.ray_pool import RayPool
from tests.actors.fakes import segment
with RayPool("fake", batch=3, engine="tests.actors.fakes:make_engine") as pool:
    print(pool._connection.how, pool.submit(segment(5)).result(200).usage.nfe)
"""


def test_a_job_joins_its_cluster_and_leaves_it_running(ray_up: None) -> None:
    import ray

    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", JOINER],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("joined 6.0\n", "")
    with make() as pool:
        assert pool.submit(segment(5)).result(WAIT).usage.nfe == 6


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_unreachable_cluster_is_reported_at_once(address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from lotts_search.actors.connection import connect; connect({address!r}, {{}})"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert f"Failure: cannot join the Ray cluster at {address!r}: " in done.stderr.splitlines()[-1]


STOPPED = """
import os, signal, time
from lotts_search.actors.placement import Placement
from lotts_search.actors.ray_pool import RayPool
from lotts_search.study.signals import terminable
from tests.actors.fakes import segment
with terminable(), RayPool("fake", placement=Placement(object_store_mb=100), engine="tests.actors.fakes:make_engine") as pool:
    print(pool.submit(segment(5)).result(200).usage.nfe, flush=True)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)
    except KeyboardInterrupt:
        print("stopped", flush=True)
"""


def test_sigterm_stops_a_program_on_ray_as_ctrl_c_does() -> None:
    """Ray replaces the handlers of SIGTERM, Python's and the system's."""
    environ = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED],
        cwd=root,
        env={**environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "6.0\nstopped\n", "")


def test_workers_find_a_checkout_and_have_equal_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", "/plugins"]))
    env = environment(threads=2, requirements=["image-reward==1.5"])
    assert env["pip"] == ["image-reward==1.5"]
    assert env["env_vars"] == {
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": os.pathsep.join([str(root), str(Path.cwd()), "/plugins"]),
    }
    assert "pip" not in environment(threads=1)


def test_a_failing_rewriter_actor_does_not_end_the_pool(ray_up: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOTTS_REWRITER_TEST", "passed")
    echo, image = "tests.actors.fakes:Echo", np.zeros((8, 8, 3), dtype=np.uint8)
    with make(rewriters={echo: {"word": "twice"}}, limits=Limits(attempts=1)) as pool:
        futures = [pool.submit(Rewrite(echo, prompt, image, 2, 0)) for prompt in ("a fox", "bad", "a cat")]
        fox, bad, cat = (future.result(WAIT) for future in futures)
        assert fox.prompts == ("a fox twice passed",) * 2 and cat.prompts == ("a cat twice passed",) * 2
        assert (fox.actor, fox.usage.rewrites, fox.usage.fallbacks) == (f"{echo}-0", 1, 0)
        assert (bad.prompts, bad.usage.fallbacks, bad.note) == (("bad", "bad"), 2, "ValueError: a bad reply")
        with pytest.raises(Failure, match="lost work: a rewrite task: a worker died"):
            pool.submit(Rewrite(echo, "kill", image, 2, 0)).result(WAIT)
        assert pool.submit(Rewrite(echo, "a fox", image, 1, 0)).result(WAIT).prompts == ("a fox twice passed",)
        with pytest.raises(BadInput, match="unknown rewriter 'chat'"):
            pool.submit(Rewrite("chat", "a fox", image, 1, 0))
    with pytest.raises(BadInput, match="needs a model: a folder or Hub id"):
        make(rewriters={"transformers": {}})
