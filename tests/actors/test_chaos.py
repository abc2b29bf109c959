"""Actors, raylets, nodes and drivers are killed and stopped again and again: the trial table is that of an undisturbed run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")
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
