"""Look up code by name, including the entry points of other packages. Nothing is imported before it is used."""

from __future__ import annotations

import difflib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from lotts_search.errors import BadInput, described, nearest, unknown


@dataclass(frozen=True)
class Entry:
    """A registered name.

    Attributes:
        name: the name.
        target: ``package.module:Class``, or the folder of a model.
        summary: one line of description; "" for a plug-in, see :func:`summary_of`.
        package: the package that a plug-in comes from; "" for a name of ours.
    """

    name: str
    target: str
    summary: str
    package: str = ""


def with_plugins(group: str, own: list[Entry]) -> dict[str, Entry]:
    """Return entries by name: those of other packages, and ``own``, which no package can replace."""
    return {entry.name: entry for entry in (*_plugins(group), *own)}


@cache
def _plugins(group: str) -> tuple[Entry, ...]:
    return tuple(
        Entry(point.name, point.value, "", point.dist.name if point.dist is not None else "another package")
        for point in entry_points(group=group)
    )


def summary_of(kind: str, entry: Entry) -> str:
    """Return one line of description; that of a plug-in is the first line of its docstring, or why it has none.

    Args:
        kind: kind of the object in messages, e.g. ``strategy``.
    """
    if not entry.package:
        return entry.summary
    try:
        found = resolve(kind, entry.target, {})
    except BadInput as error:
        return f"{error} (from {entry.package})"
    return f"{first_line(found) or 'It has no docstring.'} (from {entry.package})"


def first_line(found: Any) -> str:
    """Return the first line of a docstring; "" where there is none but that which a dataclass gives itself."""
    line = str(vars(found).get("__doc__") or "").strip().partition("\n")[0]
    return "" if line.startswith(f"{found.__name__}(") else line


def target_of(kind: str, name: str, known: Mapping[str, Entry]) -> str:
    """Return ``package.module:Class`` behind a registered name, or the name itself if it is one; imports nothing.

    Args:
        kind: kind of the object in messages, e.g. ``strategy``.

    Raises:
        BadInput: the name is unknown.
    """
    if name in known:
        return known[name].target
    if ":" not in name:
        error = unknown(kind, name, known)
        module, dot, last = name.rpartition(".")
        raise BadInput(f"{error}; a class of a module is named {module}:{last}") if dot else error
    return name


def resolve(kind: str, name: str, known: Mapping[str, Entry]) -> Any:
    """Import the object behind a registered name or ``package.module:Class``; what its module prints goes to stderr.

    Args:
        kind: kind of the object in messages, e.g. ``strategy``.

    Raises:
        BadInput: the name is unknown, or the object cannot be imported.
    """
    target = target_of(kind, name, known)
    try:
        with redirect_stdout(sys.stderr):  # stdout is the command's own
            return pkgutil.resolve_name(target)
    except Exception as error:  # the module's own code may raise anything
        what = str(error) if isinstance(error, ImportError | AttributeError | ValueError) else described(error)
        raise BadInput(f"{kind} {name!r} cannot be imported from {target}: {what}{_nearest(target)}") from error


def _nearest(target: str) -> str:
    """Return the nearest name to that of a target's object in its module, or to that of its module in the search path."""
    module, _, name = target.partition(":")
    if module in sys.modules:
        return nearest(name, (own for own in vars(sys.modules[module]) if not own.startswith("_")))
    if not module.isidentifier() or importlib.util.find_spec(module) is not None:  # or its own code raised the error
        return ""
    return nearest(module, (found.name for found in pkgutil.iter_modules()))


def misnamed(found: Any, needed: str) -> str:
    """Return `` (did you mean 'score' by 'scores'?)`` where a class has a name near that of a method that it lacks, else
    ""."""
    own = (name for name in dir(found) if not name.startswith("_") and name != needed)
    near = difflib.get_close_matches(needed, own, n=1)
    return f" (did you mean {needed!r} by {near[0]!r}?)" if near else ""


def refuse_lacking(found: type[Any], kind: str, *signatures: str) -> None:
    """Refuse a plug-in class that lacks a method, and suggest the method of a similar name.

    Args:
        kind: what it should be, e.g. ``strategy``.
        signatures: the methods that it needs, e.g. ``plan(budget, costs)``.

    Raises:
        BadInput: a method is missing.
    """
    for signature in signatures:
        name = signature.partition("(")[0]
        method = getattr(found, name, None)
        if not callable(method) or getattr(method, "__isabstractmethod__", False):
            raise BadInput(f"{found.__name__} is not a {kind}: it lacks the method {signature}{misnamed(found, name)}")
