"""The Slurm script: linted, and run on one node, where stand-ins answer for Slurm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.schemas import ROOT

SCRIPT = ROOT / "cluster" / "slurm.sh"
ALONE = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
"""Runs a command in a world of its own processes: ``ray symmetric-run`` stops every Ray that it sees."""
BINARIES = {
    "lotts-search": f'#!/bin/sh\nexec {sys.executable} -m lotts_search "$@"\n',
    "ray": f'#!/bin/sh\nexec {sys.executable} -c "from ray.scripts.scripts import main; main()" "$@"\n',
    "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    "srun": '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
    "hostname": "#!/bin/sh\necho 127.0.0.1\n",
    "scontrol": '#!/bin/sh\nif [ "$1" = show ]; then echo here; else echo "$@" >>"$SCONTROL"; fi\n',
}
YAML = """\
strategies: [best-of-n]
prompts: ["top left red circle, center blue star on gray", "top red star, right blue circle on gray"]
budgets: {nfe: [4000]}
"""


def shellcheck() -> str | None:
    return shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(shellcheck() is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    ran = subprocess.run([str(shellcheck()), "--severity=style", SCRIPT], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a Slurm job on one node with four CPUs."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in BINARIES.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="lr-", dir="/tmp", ignore_cleanup_errors=True) as folder:  # short: sockets
        yield {
            **os.environ,
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": folder,
            "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
            "SCONTROL": str(tmp_path / "scontrol"),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "here",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_ON_NODE": "4",
        }


def run(environ: dict[str, str], folder: Path, seconds: float, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a job that has still ``seconds`` to run, and its margin."""
    environ = {**environ, "SLURM_JOB_END_TIME": str(int(time.time() + 300 + seconds))}
    words = [*ALONE, str(SCRIPT), str(folder / "study.yaml"), str(folder / "out"), *options]
    return subprocess.run(words, env=environ, text=True, capture_output=True, timeout=600, check=False)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0,
    reason="needs unshare and the right to make namespaces",
)
def test_a_job_whose_time_is_up_is_queued_again_and_resumes(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "study.yaml").write_text(YAML)
    first = run(environ, tmp_path, 45, "--generators", "2")
    assert first.returncode == 124, first.stdout + first.stderr
    assert Path(environ["SCONTROL"]).read_text() == f"requeue {environ['SLURM_JOB_ID']}\n"
    kept = sum(path.stat().st_size for path in (tmp_path / "out" / "journal").glob("*.*"))
    assert kept > 1000, first.stdout + first.stderr
    second = run(environ, tmp_path, 550)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "to resume" in second.stdout + second.stderr
    assert json.loads((tmp_path / "out" / "study.json").read_text())["status"] == "done"
    broken = run({**environ, "SLURM_CPUS_ON_NODE": "many"}, tmp_path, 60)
    assert broken.returncode != 0 and "did not start" in broken.stderr
