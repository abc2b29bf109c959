"""Actors, raylets, nodes and drivers are killed and stopped again and again: the trial table is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")
from lotts_search.testing import AnalyticPool
from tests.actors.chaos import YAML, Study, cluster, lasting
from tests.study.worlds import run, world

pytestmark = pytest.mark.slow

KILLS, DRIVERS = 16, 4


def test_a_study_under_chaos_ends_as_if_undisturbed(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.actors.chaos", str(tmp_path), str(KILLS), str(DRIVERS), "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    *kills, last = map(json.loads, done.stdout.splitlines())
    assert len(kills) == KILLS + DRIVERS and len({(kill["killed"], kill["by"]) for kill in kills}) == 9
    assert last["code"] == 0 and last["equal"] and last["status"] == [["done", last["trials"]]]
    assert last["wasted"] > 0, "no kill hit any work"


def test_a_study_whose_head_is_lost_resumes_on_another(tmp_path: Path) -> None:
    yaml = world(tmp_path, YAML.replace("count: 100", "count: 12"))
    run(yaml, tmp_path / "whole", AnalyticPool())
    slow = tmp_path / "slow"
    slow.touch()
    with cluster(nodes=2) as nodes:
        study = Study(yaml, tmp_path / "out", nodes.cluster.address)
        study.wait_until_whole(set())
        head = nodes.cluster.head_node
        assert head is not None
        for kind in ("gcs_server", "raylet"):
            for started in head.all_processes[kind]:
                os.kill(started.process.pid, signal.SIGKILL)
        assert study.process.wait(180) == 1, "Ray ends a driver a minute after it has lost the head"
    slow.unlink()
    with cluster(nodes=2) as nodes:
        assert Study(yaml, tmp_path / "out", nodes.cluster.address).process.wait(300) == 0
    assert lasting(tmp_path / "out") == lasting(tmp_path / "whole")
