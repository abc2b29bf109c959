"""Whole searches with a small Stable Diffusion model: every pool gives the same, also when an actor is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

import lotts_search
from lotts_search.actors.ray_pool import RayPool
from lotts_search.engine.local_pool import LocalPool
from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.registry import load_backbone
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Generate, Result, Score
from tests.actors.fakes import Brightness
from tests.tiny import save, tiny_pipeline

pytestmark = pytest.mark.ray

VERIFIER = "tests.actors.fakes:Brightness"
DEFAULTS = {
    "steps": 6,
    "guidance": 2.0,
    "t0": 3,
    "integrate": 1,
    "eta": 1.0,
    "mask": {"kind": "error-contrast", "ratio": 0.5, "levels": [400], "draws": 1},
}
NFE = 40
"""Three whole branches of 6 + 1 + 2·3 NFE, and one NFE that pays for nothing."""
BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save(tiny_pipeline(), tmp_path_factory.mktemp("model"))
    (path / "lotts.json").write_text(json.dumps(DEFAULTS))
    return path


def run(pool: Pool) -> lotts_search.SearchResult:
    return lotts_search.search("a red circle", strategy="lotts", verifier=VERIFIER, nfe=NFE, seed=3, pool=pool)


def tree(found: lotts_search.SearchResult) -> list[Any]:
    """Return what must not depend on where and when trials ran; images by their hash."""
    return [
        (t.trial_id, t.parent_id, t.kind, t.lineage, t.start, t.stop, t.image, t.score, t.nfe, t.nfe_cum, t.best_so_far)
        for t in found.trials
    ]


@pytest.fixture(scope="module")
def local(folder: Path) -> lotts_search.SearchResult:
    with LocalPool(load_backbone(str(folder)), {VERIFIER: Brightness()}, batch=BATCH, threads=1) as pool:
        return run(pool)


@pytest.fixture(scope="module")
def one_actor(ray_up: None, folder: Path) -> Iterator[RayPool]:
    with RayPool(str(folder), [VERIFIER], 1, BATCH, threads=1) as pool:
        yield pool


class KillingPool:
    """A pool that kills its generator's process after the given number of segments."""

    def __init__(self, pool: RayPool, after: int) -> None:
        self.pool, self.after = pool, after
        self.info: ModelInfo = pool.info

    def submit(self, work: Generate | Score) -> Future[Result]:
        future = self.pool.submit(work)
        if isinstance(work, lotts_search.work.requests.Segment):
            self.after -= 1
            if self.after == 0:
                os.kill(self.pool.workers()[0].pid, signal.SIGKILL)
        return future

    def close(self) -> None:
        self.pool.close()


def test_one_actor_gives_the_same_search_as_this_process(local: lotts_search.SearchResult, one_actor: RayPool) -> None:
    found = run(one_actor)
    assert {t.kind for t in local.trials} == {"sample", "localize", "refine", "score"}
    assert local.ledger.nfe == 39
    assert tree(found) == tree(local)
    assert found.score == local.score


def test_the_map_of_a_trajectory_comes_back_bitwise(one_actor: RayPool, folder: Path) -> None:
    settings = {"mask": "trajectory", "depth": 2}
    asked = {"strategy": "lotts", "settings": settings, "verifier": VERIFIER, "images": 4, "seed": 3}
    with LocalPool(load_backbone(str(folder)), {VERIFIER: Brightness()}, BATCH, threads=1) as pool:
        here = lotts_search.search("a red circle", pool=pool, **asked)  # type: ignore[arg-type]
    there = lotts_search.search("a red circle", pool=one_actor, **asked)  # type: ignore[arg-type]
    assert tree(here) == tree(there) and here.located
    for key, located in here.located.items():
        assert np.array_equal(located.stages["change"], there.located[key].stages["change"])


def test_a_search_survives_the_death_of_its_actor(local: lotts_search.SearchResult, one_actor: RayPool) -> None:
    found = run(KillingPool(one_actor, after=5))
    assert tree(found) == tree(local)
    assert found.score == local.score and found.ledger.nfe == 39
    again = [t for t in found.trials if t.attempts > 1]
    assert again and all(t.nfe_wasted == t.nfe * (t.attempts - 1) for t in again)
    assert found.ledger.nfe_wasted == sum(t.nfe_wasted for t in again) > 0


def test_two_actors_give_the_same_search(
    local: lotts_search.SearchResult, ray_up: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    with RayPool(folder.name, [VERIFIER], 2, BATCH, threads=1) as pool:  # workers run in another folder
        assert pool.info.name == folder.name
        found = run(pool)
    assert tree(found) == tree(local)
    assert found.score == local.score
    assert {t.actor for t in found.trials if t.kind == "sample"} == {"generator-0", "generator-1"}


def test_a_broken_model_folder_fails_at_once_with_the_same_message(ray_up: None, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(Failure) as here:
        load_backbone(str(tmp_path))
    with pytest.raises(Failure) as there:
        RayPool(str(tmp_path), [], 1)
    assert str(there.value) == str(here.value)


def test_a_search_that_cannot_work_is_refused_before_the_first_step(ray_up: None, folder: Path) -> None:
    with RayPool(str(folder), ["tests.actors.fakes:Small", VERIFIER], 1, BATCH, threads=1) as pool:
        common: dict[str, Any] = {"strategy": "lotts", "nfe": NFE, "pool": pool}
        with pytest.raises(BadInput, match="images must be 8x8, not 32x32"):
            lotts_search.search("a red circle", verifier="tests.actors.fakes:Small", **common)
        with pytest.raises(BadInput, match="their templates are equal"):
            lotts_search.search("a star", verifier=VERIFIER, settings={"high": "a {}", "low": "a {}"}, **common)
        with pytest.warns(Notice, match="does not read the end of the prompt"):
            lotts_search.search("a red star and " * 9, verifier=VERIFIER, images=1, pool=pool, strategy="resampling")
