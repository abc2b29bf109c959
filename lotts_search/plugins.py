"""Look up code by name, including the entry points of other packages. Nothing is imported before it is used."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from lotts_search.errors import BadInput, unknown


@dataclass(frozen=True)
class Entry:
    """A registered name.

    Attributes:
        name: the name.
        target: ``package.module:Class``, or the folder of a model.
        summary: one line of description.
    """

    name: str
    target: str
    summary: str


def with_plugins(group: str, own: list[Entry]) -> dict[str, Entry]:
    """Return entries by name: those of other packages, and ``own``, which no package can replace."""
    return {entry.name: entry for entry in (*_plugins(group), *own)}


@cache
def _plugins(group: str) -> tuple[Entry, ...]:
    return tuple(Entry(point.name, point.value, _origin(point)) for point in entry_points(group=group))


def _origin(point: Any) -> str:
    return f"From the package {point.dist.name}." if point.dist is not None else "From another package."


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
        raise unknown(kind, name, known)
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
        what = str(error) if isinstance(error, ImportError | AttributeError | ValueError) else repr(error)
        raise BadInput(f"{kind} {name!r} cannot be imported from {target}: {what}") from error
