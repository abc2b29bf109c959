"""A pool as a demand for nodes, on Ray's own autoscaler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

pytest.importorskip("ray")


@pytest.mark.slow
def test_nodes_come_for_a_pool_and_leave_when_it_has_no_work_and_after_it() -> None:
    environ = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory(prefix="la-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = [sys.executable, "-m", "tests.actors.autoscaled", folder]
        done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["before"] == found["after"] == [0.0] and found["during"] == [0.0, 2.0, 2.0]
    assert found["idle"] == [0.0, 2.0]
    assert found["actors"] == ["generator-0", "generator-1"] and sorted(found["seen"].split(",")) == ["0", "1"]
