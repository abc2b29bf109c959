"""A YAML file as places that know their line, so that every complaint about it can name one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lotts_search.errors import BadInput, unknown


class Place:
    """A node of a YAML file. Its methods read it as what is wanted, or raise BadInput with file and line."""

    def __init__(self, node: yaml.Node, file: str):
        self._node, self._file = node, file

    @property
    def line(self) -> int:
        """Counted from 1."""
        return int(self._node.start_mark.line) + 1

    def wrong(self, message: object) -> BadInput:
        """The error for something wrong here."""
        return BadInput(f"{self._file}, line {self.line}: {message}")

    @property
    def is_table(self) -> bool:
        return isinstance(self._node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        return isinstance(self._node, yaml.SequenceNode)

    def table(self, what: str, known: Iterable[str] | None = None) -> dict[str, Place]:
        """``{key: place of the value}``; with ``known`` no other keys may be there."""
        if not isinstance(self._node, yaml.MappingNode):
            raise self.wrong(f"{what} must be keys with values, not {self.plain()!r}")
        names = None if known is None else list(known)
        found: dict[str, Place] = {}
        for key, value in self._node.value:
            name = str(key.value)
            here = Place(key, self._file)
            if name in found:
                raise here.wrong(f"{name!r} is there twice")
            if names is not None and name not in names:
                raise here.wrong(unknown(f"key of {what}:", name, names))
            found[name] = Place(value, self._file)
        return found

    def items(self, what: str) -> list[Place]:
        """The places of a list; a single value is a list of one."""
        if not isinstance(self._node, yaml.SequenceNode):
            return [self]
        if not self._node.value:
            raise self.wrong(f"{what} must not be empty")
        return [Place(item, self._file) for item in self._node.value]

    def plain(self) -> Any:
        """The value as Python's own types."""
        try:
            return yaml.constructor.SafeConstructor().construct_document(self._node)
        except yaml.YAMLError as error:
            raise self.wrong(getattr(error, "problem", None) or error) from error

    def text(self, what: str) -> str:
        value = self.plain()
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"{what} must be a text, not {value!r}")
        return value

    def flag(self, what: str) -> bool:
        value = self.plain()
        if not isinstance(value, bool):
            raise self.wrong(f"{what} must be true or false, not {value!r}")
        return value

    def number(self, what: str, least: float = -math.inf) -> float:
        value = self.plain()
        if isinstance(value, str):
            with suppress(ValueError):
                value = float(value)  # YAML 1.1 takes 1e3 for a text
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < least:
            above = "" if least == -math.inf else f" of {least:g} or more"
            raise self.wrong(f"{what} must be a number{above}, not {value!r}")
        return float(value)

    def integer(self, what: str, least: float = -math.inf) -> int:
        value = self.plain()
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            above = "" if least == -math.inf else f" of {least:g} or more"
            raise self.wrong(f"{what} must be an integer{above}, not {value!r}")
        return value

    def choice(self, what: str, known: Iterable[str]) -> str:
        """One of the known texts."""
        names, value = list(known), self.text(what)
        if value not in names:
            raise self.wrong(unknown(what, value, names))
        return value


def open_yaml(path: Path) -> Place:
    """The root of a YAML file.

    Raises:
        BadInput: the file is missing, is not YAML, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise BadInput(f"{path}{where}: {getattr(error, 'problem', None) or error}") from error
    if node is None:
        raise BadInput(f"{path} is empty")
    return Place(node, str(path))
