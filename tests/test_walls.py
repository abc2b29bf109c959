"""The floor plan holds: what each room of ``lotts_search/`` may import, and how large files and classes may be.

Imports are read from the source, so that those inside functions and under ``TYPE_CHECKING`` count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import lotts_search

ROOT = Path(lotts_search.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py")) + [
    ROOT / link / path.name  # rglob does not follow links
    for link in ("strategies", "actors")
    for path in sorted((ROOT / link).iterdir())
    if path.suffix == ".py"
]


class Import(NamedTuple):
    """A module that a file imports, in full, and where."""

    file: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """The room of a module: a folder of the package, or a file at its root; other packages are rooms of their own."""
    first, _, rest = module.partition(".")
    if first != "lotts_search":
        return first
    return rest.partition(".")[0] or first


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file."""
    name = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield Import(name, node.lineno, _target(node.module, alias.name))


def _target(module: str, name: str) -> str:
    """The module that ``from module import name`` reaches; names of the package itself are found in their homes."""
    if module == "lotts_search" and name in lotts_search._HOME:
        return f"lotts_search.{lotts_search._HOME[name]}"
    full = f"{module}.{name}"
    return full if full in MODULES else module


IMPORTS: dict[str, list[Import]] = {}
for _path in FILES:
    IMPORTS.setdefault(room_of(module_of(_path)), []).extend(imports_of(_path))


def bad(room: str, forbidden: set[str]) -> list[str]:
    """The imports of a room from rooms where it has no business."""
    return [str(found) for found in IMPORTS[room] if room_of(found.module) in forbidden]


def other_rooms(*allowed: str) -> set[str]:
    """All rooms of the package except these."""
    return set(IMPORTS) - set(allowed)


def test_the_reader_of_imports_sees_them_all() -> None:
    """Those of ``from … import`` and ``import``, inside functions, under TYPE_CHECKING, and of linked folders."""
    found = {room: {room_of(one.module) for one in imports} for room, imports in IMPORTS.items()}
    assert {"core", "arithmetic"} <= found["strategies"] and "ray" in found["actors"] and "torch" in found["engine"]
    assert "engine" in found["api"], "the local pool is imported inside a function"
    assert "pyarrow" in found["core"], "pyarrow is imported under TYPE_CHECKING"


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("strategies", other_rooms("strategies", "core", "arithmetic", "errors") | {"torch", "ray", "diffusers"}),
        ("arithmetic", other_rooms("arithmetic", "errors") | {"torch", "ray"}),
        ("core", other_rooms("core", "work", "errors", "plugins") | {"torch", "ray"}),
        ("work", other_rooms("work", "errors", "plugins") | {"torch", "ray"}),
        ("engine", {"core", "strategies", "arithmetic", "api", "study", "report", "cli", "ray"}),
        ("curves", {"core", "engine", "strategies", "work", "torch", "ray"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_walls(room: str, forbidden: set[str]) -> None:
    assert not (found := bad(room, forbidden)), f"{room}/ must not import these:\n" + "\n".join(found)


def test_ray_is_imported_only_where_models_run_and_serve() -> None:
    found = [
        one for room in set(IMPORTS) - {"actors", "serve"} for one in IMPORTS[room] if room_of(one.module) == "ray"
    ]
    assert not found, "\n".join(map(str, found))


def test_no_rooms_import_in_a_circle() -> None:
    rooms = {
        room: {room_of(one.module) for one in imports} & set(IMPORTS) - {room} for room, imports in IMPORTS.items()
    }
    del rooms["lotts_search"]  # its __init__ hands out the names of all rooms when they are asked for
    for to in rooms.values():
        to.discard("lotts_search")
    while free := [room for room, to in rooms.items() if not to & set(rooms)]:
        rooms = {room: to for room, to in rooms.items() if room not in free}
    arrows = [str(one) for room in rooms for one in IMPORTS[room] if room_of(one.module) in set(rooms) - {room}]
    assert not rooms, "these rooms import each other in a circle:\n" + "\n".join(arrows)


def test_at_most_nine_files_lie_at_the_root() -> None:
    files = [path.name for path in ROOT.iterdir() if path.is_file()]
    assert len(files) <= 9, files


def test_no_class_is_above_250_lines() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {node.name} has {length} lines"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.end_lineno and (length := node.end_lineno - node.lineno + 1) > 250
    ]
    assert not found, "\n".join(found)


def test_the_engine_is_at_most_250_lines() -> None:
    assert len((ROOT / "engine" / "engine.py").read_text().splitlines()) <= 250
