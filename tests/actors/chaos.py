"""A program: one study on a Ray cluster of three nodes, with actors, raylets, nodes and drivers killed again and again.

    python -m tests.actors.chaos FOLDER KILLS DRIVERS SEED

KILLS are of generators, verifiers, raylets and nodes, by SIGKILL and by SIGSTOP; DRIVERS of the study's own process, which is started
again. Prints, as JSON, one line for each kill with the seconds until all actors work again and answers arrive, and at the end
whether the trial table is that of the same study without Ray. A node that was killed is replaced, as a cluster's autoscaler does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from lotts_search.testing import AnalyticPool
from tests.study.worlds import run, table, world

YAML = """\
model: ./analytic
strategies:
  - best-of-n
  - strategy: lotts
    grid: {refinements: [1, 2]}
  - tests.study.greedy:Greedy
prompts: {from: shapes-test, count: 100}
budgets: {nfe: [24, 60]}
metrics: [tests.actors.fakes:Brightness]
images: none
"""
GENERATORS, VERIFIERS, NODES, CPUS = 3, 2, 3, 3
TARGETS = ("generator", "verifier", "raylet", "node")
WAIT_S = 120.0
SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
    "prestart_worker_first_driver": False,
    "worker_niceness": 0,
}
MEASURED = ["device_s", "queue_s", "started", "finished", "node", "actor", "attempts", "nfe_wasted"]
"""Columns that depend on when, where and how often a trial ran."""


class Study:
    """The driver, and what it writes down."""

    def __init__(self, yaml: Path, out: Path, address: str):
        self.yaml, self.out, self.address = yaml, out, address
        self.log, self.errors = yaml.parent / "actors.log", yaml.parent / "driver.log"
        self.start()

    def start(self) -> None:
        self.log.write_bytes(b"")
        words = [str(self.yaml), str(self.out), self.address, str(self.log), str(GENERATORS)]
        with open(self.errors, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.actors.chaos_study", *words], stdout=errors, stderr=errors
            )

    def seen(self) -> dict[str, Any]:
        """Return the last line of the log."""
        lines = [line for line in self.log.read_text().split("\n")[:-1] if line]
        return json.loads(lines[-1]) if lines else {"answered": 0, "actors": {}}

    def wait_until_whole(self, gone: set[int]) -> float:
        """Wait until all actors are there, none of them with a process in ``gone``, and work is answered after that. Return the
        seconds that it took."""
        began, answered = time.time(), None
        while time.time() - began < WAIT_S:
            if self.process.poll() is not None:
                raise SystemExit(
                    f"the driver has ended, exit code {self.process.returncode}:\n{self.errors.read_text()[-3000:]}"
                )
            seen = self.seen()
            whole = len(seen["actors"]) == GENERATORS + VERIFIERS and not gone & set(seen["actors"].values())
            answered = seen["answered"] if whole and answered is None else answered
            if whole and answered is not None and seen["answered"] > answered:
                return time.time() - began
            time.sleep(0.02)
        raise SystemExit(f"not recovered within {WAIT_S:.0f} s: {seen}\n{self.errors.read_text()[-3000:]}")


class Nodes:
    """The nodes of a cluster on this machine."""

    def __init__(self, folder: str, nodes: int = NODES, **args: Any):
        from ray.cluster_utils import Cluster

        self.args = {"num_cpus": CPUS, "object_store_memory": 80 * 1024 * 1024, "include_dashboard": False, **args}
        self.cluster = Cluster(True, head_node_args={**self.args, "temp_dir": folder, "_system_config": SYSTEM})
        for _ in range(nodes - 1):
            self.add()

    def add(self, **args: Any) -> Any:
        return self.cluster.add_node(**{**self.args, **args})

    def hosts(self, pid: int) -> Any:
        """Return the node of a process; None for the head, which has the study's own connection to Ray."""
        parents = {parent.pid for parent in psutil.Process(pid).parents()}
        return next((node for node in self.cluster.worker_nodes if self.raylet(node) in parents), None)

    def raylet(self, node: Any) -> int:
        return int(node.all_processes["raylet"][0].process.pid)

    def replace(self, node: Any, processes: list[psutil.Process]) -> None:
        """End what is left of a node, and start another."""
        for process in processes:
            send(process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()


def send(pid: int, sign: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)


def kill(target: str, sign: int, study: Study, nodes: Nodes, rng: random.Random) -> float:
    """Kill something that has work, and return the seconds until the study has recovered."""
    actors = study.seen()["actors"]
    generators = [pid for name, pid in actors.items() if name.startswith("generator")]
    if target in ("generator", "verifier"):
        pid = rng.choice([pid for pid in actors.values() if (pid in generators) == (target == "generator")])
        send(pid, sign)
        took = study.wait_until_whole({pid})
        send(pid, signal.SIGKILL)
        return took
    node = nodes.hosts(rng.choice([pid for pid in actors.values() if nodes.hosts(pid) is not None]))
    raylet = psutil.Process(nodes.raylet(node))
    children = raylet.children(recursive=True)
    for process in [raylet, *(children if target == "node" else [])]:
        send(process.pid, sign)
    took = study.wait_until_whole({child.pid for child in children})
    nodes.replace(node, children)
    return took


def lasting(out: Path) -> list[dict[str, Any]]:
    """Return the rows of the trial table without what is measured."""
    rows: list[dict[str, Any]] = table(out).drop_columns(MEASURED).to_pylist()
    return rows


@contextlib.contextmanager
def cluster(nodes: int = NODES, **args: Any) -> Iterator[Nodes]:
    """Start a cluster on this machine, whose nodes have these arguments; the context ends it."""
    with tempfile.TemporaryDirectory(prefix="lr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        os.mkdir(f"{folder}/ray")
        started = Nodes(f"{folder}/ray", nodes, **args)
        try:
            yield started
        finally:
            started.cluster.shutdown()


def main(folder: Path, kills: int, drivers: int, seed: int) -> None:
    rng = random.Random(seed)
    yaml = world(folder, YAML)
    slow = folder / "slow"
    slow.touch()
    whole, out = folder / "whole", folder / "out"
    run(yaml, whole, AnalyticPool())
    expected = lasting(whole)
    kinds = itertools.islice(itertools.cycle(itertools.product((signal.SIGKILL, signal.SIGSTOP), TARGETS)), kills)
    plan: list[tuple[int, str]] = [*kinds, *[(signal.SIGKILL, "driver")] * drivers]
    rng.shuffle(plan)
    recovered: list[float] = []
    with cluster() as nodes:
        study = Study(yaml, out, nodes.cluster.address)
        study.wait_until_whole(set())
        for sign, target in plan:
            time.sleep(rng.uniform(0, 1))
            began = time.time()
            if target == "driver":
                study.process.kill()
                study.process.wait()
                study.start()
                took = study.wait_until_whole(set())
            else:
                took = kill(target, sign, study, nodes, rng)
            recovered.append(took)
            line = {"killed": target, "by": signal.Signals(sign).name, "recovered": round(took, 2)}
            print(json.dumps({**line, "cleared": round(time.time() - began, 2)}), flush=True)
        slow.unlink()
        code = study.process.wait(600)
    rows = table(out)
    print(
        json.dumps(
            {
                "code": code,
                "trials": len(expected),
                "equal": lasting(out) == expected,
                "nfe": sum(row["nfe"] for row in expected),
                "median": round(statistics.median(recovered), 2),
                "longest": round(max(recovered), 2),
                "wasted": sum(rows["nfe_wasted"].to_pylist()),
                "attempts": sorted(Counter(rows["attempts"].to_pylist()).items()),
                "status": sorted(Counter(rows["status"].to_pylist()).items()),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
