"""The same as ``test_killed``, with the embedded model on Ray actors: the driver is killed, and all of Ray with it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.study.worlds import files, lasting

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

YAML = """\
strategies: [best-of-n, lotts]
prompts: {from: shapes-test, count: 3}
budgets: {nfe: [24, 48]}
metrics: [shapes-oracle]
images: all
"""
KILLS = 4


def start(yaml: Path, out: Path) -> subprocess.Popen[bytes]:
    words = ["study", str(yaml), "--out", str(out), "--generators", "2"]
    program = [sys.executable, "-c", "import sys; from lotts_search.cli import main; main(sys.argv[1:])", *words]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def held(out: Path) -> int:
    """Bytes of journals and logs."""
    total = 0
    for path in (out / "journal").glob("*.*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # finished this very moment
            continue
    return total


def test_killed_on_ray_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    yaml, rng = tmp_path / "study.yaml", random.Random(0)
    yaml.write_text(YAML)
    whole = start(yaml, tmp_path / "whole")
    assert whole.wait(600) == 0, whole.stderr.read().decode() if whole.stderr else ""
    out = tmp_path / "run"
    for _ in range(KILLS):
        before = held(out)
        running = start(yaml, out)
        while running.poll() is None and held(out) == before:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        if running.poll() is not None:
            break
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    last = start(yaml, out)
    assert last.wait(600) == 0, last.stderr.read().decode() if last.stderr else ""
    # On Ray another batch may hold other rows, but batches are padded to one size: the bits are the same.
    assert lasting(out) == lasting(tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")
