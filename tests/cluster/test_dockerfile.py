"""The Dockerfile: linted, and what it copies and installs exists. Nothing here builds it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cluster.schemas import ROOT

FILE = ROOT / "cluster" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def hadolint() -> str | None:
    return shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(hadolint() is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    ran = subprocess.run([str(hadolint()), FILE], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_what_is_copied_is_in_the_context() -> None:
    """The file beside it that excludes everything names exactly what is copied."""
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", FILE.read_text(), re.MULTILINE) for word in line.split()}
    assert {"pyproject.toml", "constraints.txt", "lotts_search", "strategies", "actors"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    excluded, *kept = [
        line for line in (FILE.parent / "Dockerfile.dockerignore").read_text().split("\n") if line[:1] in "*!"
    ]
    assert excluded == "*"
    assert {line[1:] for line in kept if line.startswith("!")} == copied


def test_it_installs_the_tested_versions_on_a_supported_python() -> None:
    text = FILE.read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE))
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    version = tuple(map(int, arguments["PYTHON"].split(".")))
    least = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert version >= least and f"Python :: {arguments['PYTHON']}" in " ".join(PROJECT["classifiers"])
    installs = re.findall(r"pip install.+", text)
    assert len(installs) == 2 and all("--constraint constraints.txt" in line for line in installs)


def test_the_last_stages_are_the_documented_targets_and_not_root() -> None:
    text = FILE.read_text()
    stages = re.split(r"^FROM .+ AS (\w+)$", text, flags=re.MULTILINE)
    assert stages[1::2] == ["cpu", "cuda"]
    for name, body in zip(stages[1::2], stages[2::2], strict=True):
        assert re.findall(r"^USER (\d+)$", body, re.MULTILINE)[-1] == "1000", name
        assert f"--target {name} " in (ROOT / "docs" / "cluster.md").read_text()
