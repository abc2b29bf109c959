"""SIGKILL at random moments: nothing is lost but what was in flight, and nothing is paid for twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

KILLS = 20


def test_a_study_that_is_killed_again_and_again_ends_as_if_undisturbed(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.study.killed", str(tmp_path), str(KILLS), "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    first, *lines = map(json.loads, done.stdout.splitlines())
    runs = [line for line in lines if "asked" in line]
    assert sum(run["killed"] for run in runs) == KILLS
    assert [line["equal"] for line in lines if "equal" in line] == [True] * (len(lines) - len(runs))
    for run in runs:
        # What is known is not asked for again, and what was asked for is lost only where it was in flight.
        assert run["asked"] <= first["total"] - run["before"]
        assert run["after"] - run["before"] <= run["asked"]
        if not run["killed"]:
            assert run["asked"] == first["total"] - run["before"]
            assert run["after"] == first["total"]
    assert sum(run["before"] > 0 for run in runs) > KILLS / 2
