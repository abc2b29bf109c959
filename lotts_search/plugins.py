"""Names that stand for code, and the packages that add some by entry points. Nothing is imported before it is used."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
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
        summary: one line about it.
    """

    name: str
    target: str
    summary: str


def with_plugins(group: str, own: list[Entry]) -> dict[str, Entry]:
    """Entries by name: those of other packages, and our own, which no package can replace."""
    return {entry.name: entry for entry in (*_plugins(group), *own)}


@cache
def _plugins(group: str) -> tuple[Entry, ...]:
    return tuple(Entry(point.name, point.value, _origin(point)) for point in entry_points(group=group))


def _origin(point: Any) -> str:
    return f"From the package {point.dist.name}." if point.dist is not None else "From another package."


def resolve(kind: str, name: str, known: Mapping[str, Entry]) -> Any:
    """What a registered name or ``package.module:Class`` stands for.

    Raises:
        BadInput: there is no such name, or it cannot be imported.
    """
    if name not in known and ":" not in name:
        raise unknown(kind, name, known)
    target = known[name].target if name in known else name
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{kind} {name!r} cannot be imported from {target}: {error}") from error
