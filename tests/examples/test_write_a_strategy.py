"""The strategies of docs/write-a-strategy.md pass their tests; tests/test_docs.py runs all its blocks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "write-a-strategy.md").read_text(), re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
STRATEGIES = [body for body in PYTHON if "@dataclass" in body]
TESTS = [body for body in PYTHON if "StrategyConformance" in body]
MORE_TESTS = """
from my_strategies import ThreeTrees


class TestThreeTrees(StrategyConformance):
    def strategy(self) -> Strategy:
        return ThreeTrees()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the reader has it in the end."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_strategies.py").write_text("\n".join(STRATEGIES))
    (folder / "test_my_strategies.py").write_text("\n".join(TESTS) + MORE_TESTS)
    return folder


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, *arguments], check=False, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_strategies_pass_their_tests(folder: Path) -> None:
    assert len(STRATEGIES) == 4 and len(TESTS) == 1
    assert "passed" in run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_the_package_names_a_strategy_of_the_page() -> None:
    (text,) = [body for language, body in BLOCKS if language == "toml"]
    (target,) = tomllib.loads(text)["project"]["entry-points"]["lotts_search.strategies"].values()
    module, _, name = target.partition(":")
    assert module == "my_strategies" and any(f"class {name}(Strategy)" in body for body in STRATEGIES)
