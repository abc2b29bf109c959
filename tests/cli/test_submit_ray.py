"""``lotts-search submit`` and ``ray job submit`` against a head that really runs, with a token."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="jobs need the extra cluster")
pytest.importorskip("opencensus", reason="jobs need the extra cluster")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"
ENVIRON = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "OMP_NUM_THREADS": "1",
}
STUDY = """\
strategies: ["job_strategies:Mine", lotts]
prompts: prompts.txt
budgets: {nfe: [200]}
"""
STRATEGY = "from lotts_search.strategies.best_of_n import BestOfN\n\nclass Mine(BestOfN):\n    '''Best-of-N.'''\n"
PROMPTS = "top left red circle, center blue star on gray\ntop red star, right blue circle on gray\n"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The dashboard of a head on this machine."""
    gcs, dashboard, agent, client = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="lr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = f"--head --block --node-ip-address=127.0.0.1 --port={gcs} --dashboard-host=127.0.0.1 --num-cpus=6"
        words += (
            f" --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --ray-client-server-port={client}"
        )
        words += f" --object-store-memory=150000000 --temp-dir={folder} --disable-usage-stats"
        start = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *words.split()]
        environ = {**ENVIRON, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        head = subprocess.Popen(start, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = f"http://127.0.0.1:{dashboard}"
            wait_for(found, head)
            yield found
        finally:
            head.terminate()
            head.wait(60)


def wait_for(address: str, head: subprocess.Popen[bytes]) -> None:
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    for _ in range(300):
        assert head.poll() is None, "the head has ended"
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError("the dashboard does not answer")


def submitting(folder: Path, address: str, out: Path, *words: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "lotts_search", "submit", "--address", address, "--out", str(out), *words]
    return subprocess.Popen(
        program, cwd=folder, env=ENVIRON, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_study_is_stopped_and_resumed(tmp_path: Path, address: str) -> None:
    """With a plug-in and prompts of its folder: what was done before Ctrl-C is not done again."""
    folder, out = tmp_path / "here", tmp_path / "out"
    folder.mkdir()
    for name, text in {"study.yaml": STUDY, "prompts.txt": PROMPTS, "job_strategies.py": STRATEGY}.items():
        (folder / name).write_text(text)
    first = submitting(folder, address, out, "study.yaml")
    while first.poll() is None and not any(path.stat().st_size > 10_000 for path in out.glob("journal/*.journal")):
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    log = first.communicate(timeout=180)[0]
    assert first.returncode == 130, log
    assert "the same command resumes it" in log
    kept = sum(path.stat().st_size for path in out.glob("journal/*.*"))
    assert kept > 10_000
    second = submitting(folder, address, out, "study.yaml")
    log = second.communicate(timeout=600)[0]
    assert second.returncode == 0, log
    assert "to resume" in log
    study = json.loads((out / "study.json").read_text())
    assert study["status"] == "done" and {search["status"] for search in study["searches"]} == {"done"}


def test_a_search_that_is_wrong_fails_with_its_own_code(tmp_path: Path, address: str) -> None:
    job = submitting(tmp_path, address, tmp_path / "out", "--", "generate", "a red circle", "--nfe", "-1")
    log = job.communicate(timeout=300)[0]
    assert job.returncode == 2, log


def test_another_token_is_refused(tmp_path: Path, address: str) -> None:
    words = [sys.executable, "-m", "lotts_search", "submit", "--address", address, "--", "generate", "x"]
    ran = subprocess.run(
        words, check=False, cwd=tmp_path, env={**ENVIRON, "RAY_AUTH_TOKEN": "f" * 32}, capture_output=True, text=True
    )
    assert ran.returncode == 1 and "refuses the token" in ran.stderr
