"""Recipes of environments: TOML files that say what is installed, in which order, and what is put right afterwards.

.. code-block:: toml

    summary = "The package my-judge 1.2, which pins transformers 4.40."
    python = ["3.11", "3.12"]             # versions of Python it is known to work with; none = any
    stubs = { turtle = ["forward"] }      # modules that scoring does not need, with names that are imported from them
    lock = "my_judge.lock.txt"            # constraints of pip for everything else, a file beside this one

    [[steps]]                             # one call of pip for each step
    install = ["my-judge==1.2", "torch==2.13.0"]

    [[steps]]
    install = ["torchvision==0.28.0"]
    no_deps = true

    [[files]]                             # copied or written inside site-packages
    to = "my_judge/vocabulary.gz"
    copy = "open_clip/bpe_simple_vocab_16e6.txt.gz"   # or: text = "…"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from lotts_search.errors import BadInput, unknown

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Step:
    """A call of pip: requirements, and whether their own requirements are left out."""

    install: tuple[str, ...]
    no_deps: bool = False


@dataclass(frozen=True)
class File:
    """A file to make in site-packages at ``to``: a copy of another one there, or a text."""

    to: str
    copy: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Recipe:
    """What an environment holds; see the module for the form of its file.

    Attributes:
        name: name of the environment, from the name of the file.
        lock: text of the constraints file.
    """

    name: str
    summary: str = ""
    python: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    files: tuple[File, ...] = ()
    stubs: Mapping[str, list[str]] = field(default_factory=dict)
    lock: str = ""

    @property
    def hash(self) -> str:
        """Return 16 hexadecimal digits that change with the recipe."""
        return blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()


def names() -> list[str]:
    """Return the names of the recipes that come with this package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def recipe_of(verifier: type[Any]) -> Recipe | None:
    """Return the recipe that a verifier class names by its attribute ``environment``; None without one.

    Raises:
        BadInput: there is no such recipe, or it is wrong.
    """
    named = getattr(verifier, "environment", None)
    if not named:
        return None
    return find_recipe(str(named), Path(_file_of(verifier.__module__)).parent)


def find_recipe(name: str, beside: Path = Path()) -> Recipe:
    """Read a recipe by the name of one of this package, or by the path of a TOML file.

    Args:
        beside: folder that a relative path starts from.

    Raises:
        BadInput: there is no such recipe, or it is wrong.
    """
    if not name.endswith(".toml"):
        if name not in names():
            raise unknown("environment", name, names())
        return read_recipe(FOLDER / f"{name}.toml")
    return read_recipe(beside / Path(name).expanduser())


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        BadInput: the file cannot be read, or holds what no recipe has; the message says what.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
        if lock := found.get("lock", ""):
            found["lock"] = (path.parent / str(lock)).read_text("utf-8")
    except OSError as error:
        raise BadInput(f"the recipe {path} cannot be read: {error.strerror} ({error.filename})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"the recipe {path} is not TOML: {error}") from error
    where = f"the recipe {path}"
    known = {"summary": str, "python": list, "steps": list, "files": list, "stubs": dict, "lock": str}
    _check(found, known, where)
    steps, files = found.pop("steps", []), found.pop("files", [])
    for table in steps:
        _check(table, {"install": list, "no_deps": bool}, f"a step of {where}")
    for table in files:
        _check(table, {"to": str, "copy": str, "text": str}, f"a file of {where}")
        if "to" not in table or ("copy" in table) == ("text" in table):
            raise BadInput(f"a file of {where} needs `to`, and either `copy` or `text`")
        for place in (table["to"], table.get("copy", "")):
            if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
                raise BadInput(f"a file of {where} lies outside site-packages: {place}")
    if not all(step.get("install") for step in steps):
        raise BadInput(f"a step of {where} needs `install`, a list of requirements")
    return Recipe(
        path.stem,
        summary=found.get("summary", ""),
        python=tuple(found.get("python", ())),
        steps=tuple(Step(tuple(step["install"]), step.get("no_deps", False)) for step in steps),
        files=tuple(File(**table) for table in files),
        stubs=found.get("stubs", {}),
        lock=found.get("lock", ""),
    )


def _check(table: object, known: Mapping[str, type], where: str) -> None:
    if not isinstance(table, dict):
        raise BadInput(f"{where} must be a table, not {table!r}")
    for key, value in table.items():
        if key not in known:
            raise unknown(f"key of {where}:", key, known)
        texts = value if isinstance(value, list) and key not in ("steps", "files") else []
        if not isinstance(value, known[key]) or not all(isinstance(text, str) for text in texts):
            raise BadInput(f"{key} of {where} must be a {known[key].__name__}, not {value!r}")


def _file_of(module: str) -> str:
    spec = find_spec(module) if module != "__main__" else None
    return (spec.origin if spec else None) or "."
