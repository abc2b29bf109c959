"""The files of ``ray up`` are valid by Ray's own schema, and their commands by its own parser."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from tests.cluster.schemas import ROOT, errors_of, misspelt

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray
FOLDER = ROOT / "cluster" / "ray-up"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
MAPS = {"node_config", "resources", "labels", "file_mounts", "available_node_types", "provider"}
"""Fields whose keys Ray's schema does not know: those of a provider are checked by the provider."""


def config(file: str) -> Any:
    return yaml.safe_load((FOLDER / file).read_text())


def schema() -> Any:
    return json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_valid(file: str) -> None:
    assert not errors_of(schema(), config(file))


@pytest.mark.parametrize("file", FILES)
def test_every_misspelt_key_is_an_error(file: str) -> None:
    unnoticed = [path for path, wrong in misspelt(config(file)) if not errors_of(schema(), wrong)]
    assert not [path for path in unnoticed if not MAPS & set(path[:-1])]


@pytest.mark.parametrize("file", FILES)
def test_ray_completes_and_accepts_a_file(file: str) -> None:
    """As ``ray up`` does before it calls the cloud."""
    util: Any = importlib.import_module("ray.autoscaler._private.util")
    prepared = util.prepare_config(config(file))
    util.validate_config(prepared)
    types, head = prepared["available_node_types"], prepared["head_node_type"]
    assert sum(types[name].get("max_workers", 0) for name in types if name != head or len(types) == 1) > 0


@pytest.mark.parametrize("file", FILES)
def test_ray_starts_with_a_token_and_known_options(file: str) -> None:
    scripts: Any = importlib.import_module("ray.scripts.scripts")
    found = config(file)
    options = {
        kind: [
            scripts.start.make_context("start", shlex.split(line.partition("ray start ")[2])).params
            for line in found[f"{kind}_start_ray_commands"]
            if "ray start " in line
        ]
        for kind in ("head", "worker")
    }
    ((head,), (worker,)) = options["head"], options["worker"]
    assert head["head"] and head["port"] == 6379 and head["autoscaling_config"]
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}" and not worker["head"]
    assert any(str(path).endswith(".ray/auth_token") for path in found["file_mounts"])
    assert (FOLDER / file).read_text().count("RAY_AUTH_MODE=token") in (1, 2)
    assert "dashboard-host" not in (FOLDER / file).read_text(), "the dashboard listens on the head alone"


def test_the_cloud_shrinks_to_its_head() -> None:
    found = config("aws.yaml")
    head, gpu = found["available_node_types"]["head"], found["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0 and gpu["max_workers"] == found["max_workers"] == 32
    assert head["resources"] == {"CPU": 0} and "--num-cpus=0" in found["head_start_ray_commands"][-1]
    assert gpu["node_config"]["ImageId"] == head["node_config"]["ImageId"]


def test_machines_install_what_this_repository_has() -> None:
    found = config("machines.yaml")
    (line,) = [line for line in found["setup_commands"] if "pip install" in line]
    extras = re.search(r"\.\[(\w+)\]", line)
    assert extras and f"\n{extras[1]} = " in (ROOT / "pyproject.toml").read_text()
    assert "-c constraints.txt" in line and (ROOT / "constraints.txt").is_file()
