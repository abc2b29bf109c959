"""What strategy files may import, and what they must say of themselves."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lotts_search import registry, strategies
from lotts_search.core.strategy import Strategy
from lotts_search.testing.conformance import StrategyConformance

FILES = sorted(path for path in Path(strategies.__file__).parent.glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_strategy_imports_neither_torch_nor_ray(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            imported.add((node.module or "").split(".")[0])
    outside = imported - set(sys.stdlib_module_names)
    assert outside <= {"lotts_search", "numpy"}, outside


def test_every_file_has_a_registered_strategy_that_names_its_source_and_cost() -> None:
    own = {name: entry for name, entry in registry.strategies().items() if entry.target.startswith("lotts_search.")}
    modules = {entry.target.partition(":")[0].rpartition(".")[2] for entry in own.values()}
    assert modules == {path.stem for path in FILES}
    for name in own:
        info = registry.describe_strategy(name)
        assert info.source and info.formula, name
        assert all(setting.doc for setting in info.settings), [s.name for s in info.settings if not s.doc]
        found = registry.resolve_strategy(name)
        assert inspect.iscoroutinefunction(found.run) and issubclass(found, Strategy)


def test_every_registered_strategy_passes_the_conformance_tests() -> None:
    def below(cls: type[StrategyConformance]) -> Iterator[type[StrategyConformance]]:
        yield cls
        for each in cls.__subclasses__():
            yield from below(each)

    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.strategies.{path.stem}")
    tested = {
        type(cls().strategy())
        for cls in below(StrategyConformance)
        if "strategy" in vars(cls) and cls.__name__.startswith("Test")
    }
    own = {
        registry.resolve_strategy(name)
        for name, entry in registry.strategies().items()
        if entry.target.startswith("lotts_search.")
    }
    assert own <= tested, own - tested


def test_strategies_load_neither_torch_nor_ray() -> None:
    """Nor does anything that they import."""
    modules = ", ".join(f"lotts_search.strategies.{path.stem}" for path in FILES)
    code = f"import sys, {modules}; print(sorted({{'torch', 'ray', 'diffusers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
