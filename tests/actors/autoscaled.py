"""A program: a pool on a cluster whose autoscaler adds nodes of two GPUs that nobody has, and removes them when they are idle.

    python -m tests.actors.autoscaled FOLDER

Prints as JSON the GPUs of the nodes before, during and after the pool, and while it has long had no work, and which generators answered. FOLDER is for Ray's files.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from lotts_search.actors.crew import Limits
from lotts_search.actors.ray_pool import RayPool
from tests.actors.fakes import segment

WAIT_S = 240.0
UNUSED = {
    name: {} if name in ("docker", "file_mounts") else []
    for name in (
        "docker", "file_mounts", "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
        "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
    )
}  # fmt: skip
"""Fields of the configuration that Ray insists on."""


def config(address: str) -> dict[str, Any]:
    """Return a configuration as of ``ray up``, with Ray's provider of nodes on this machine."""
    provider = {
        "type": "fake_multinode",
        "gcs_address": address,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
    }
    provider |= dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True)
    worker = {"CPU": 1, "GPU": 2, "object_store_memory": 80 << 20}
    types = {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpus": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    named = {"cluster_name": "test", "head_node_type": "ray.head.default", "available_node_types": types}
    more = {"max_workers": 2, "upscaling_speed": 1.0, "idle_timeout_minutes": 0.1, "auth": {"ssh_user": "nobody"}}
    return UNUSED | named | more | {"provider": provider, "file_mounts_sync_continuously": False}


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the head with its autoscaler, in a process group that holds all nodes."""
    file = folder / "config.json"
    file.write_text(json.dumps(config(f"127.0.0.1:{port}")))
    words = [
        "--head",
        f"--port={port}",
        "--node-ip-address=127.0.0.1",
        f"--autoscaling-config={file}",
        f"--temp-dir={folder}",
    ]
    words += ["--num-cpus=1", f"--object-store-memory={80 << 20}", "--include-dashboard=false", "--block"]
    environ = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    ray_command = str(Path(sys.executable).with_name("ray"))
    with open(folder / "head.log", "wb") as log:
        return subprocess.Popen(
            [ray_command, "start", *words], env=os.environ | environ, stdout=log, stderr=log, start_new_session=True
        )


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(true)
        time.sleep(0.5)


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def gpus() -> list[float]:
    """Return the GPUs of each living node."""
    return sorted(node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"])


def main(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = start(folder, port)
    try:
        wait_until(lambda: listens(port))
        address = f"127.0.0.1:{port}"
        ray.init(address, logging_level="error", log_to_driver=False)
        before = gpus()
        with RayPool(
            "fake", generators=2, address=address, backbone_options={"device": "cuda", "spread": 2},
            engine="tests.actors.fakes:make_seeing", limits=Limits(together_s=1, start_s=WAIT_S, idle_s=5),
        ) as pool:  # fmt: skip
            wait_until(lambda: len(pool.workers()) == 2)
            during, seen = gpus(), pool.info.family
            answers = [pool.submit(segment(seed)) for seed in range(20)]
            actors = sorted({answer.result(60).actor for answer in answers})
            wait_until(lambda: len(gpus()) < len(during))
            idle = gpus()
        wait_until(lambda: gpus() == before)
        print(
            json.dumps(
                {"before": before, "during": during, "seen": seen, "actors": actors, "idle": idle, "after": gpus()}
            )
        )
        ray.shutdown()
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
