"""A YAML file whose nodes know their line, so that every error can name it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lotts_search.errors import BadInput, check_text, unknown


class YamlNode:
    """A node of a YAML file. Its methods read a value of one type, or raise BadInput with file and line."""

    def __init__(self, node: yaml.Node, file: str):
        self._node, self._file = node, file

    @property
    def line(self) -> int:
        """Return the line, counted from 1."""
        return int(self._node.start_mark.line) + 1

    @property
    def where(self) -> str:
        """Return file and line, for messages."""
        return f"{self._file}, line {self.line}"

    def wrong(self, message: object) -> BadInput:
        """Return the error for something wrong here."""
        return BadInput(f"{self.where}: {message}")

    @property
    def is_table(self) -> bool:
        return isinstance(self._node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        return isinstance(self._node, yaml.SequenceNode)

    def table(
        self, what: str, known: Iterable[str] | None = None, old: Mapping[str, str] | None = None
    ) -> dict[str, YamlNode]:
        """Return ``{key: node of the value}``; with ``known``, other keys are an error.

        Args:
            old: new names of keys by their old ones, which still work.
        """
        if not isinstance(self._node, yaml.MappingNode):
            raise self.wrong(f"{what} must be keys with values, not {self.plain()!r}")
        names = None if known is None else list(known)
        found: dict[str, YamlNode] = {}
        for key, value in self._node.value:
            name = (old or {}).get(str(key.value), str(key.value))
            here = YamlNode(key, self._file)
            if name in found:
                raise here.wrong(f"{name!r} is duplicated")
            if names is not None and name not in names:
                raise here.wrong(unknown(f"key of {what}:", name, names))
            found[name] = YamlNode(value, self._file)
        return found

    def items(self, what: str) -> list[YamlNode]:
        """Return the nodes of a list; a single value is a list of one."""
        if not isinstance(self._node, yaml.SequenceNode):
            return [self]
        if not self._node.value:
            raise self.wrong(f"{what} must not be empty")
        return [YamlNode(item, self._file) for item in self._node.value]

    def plain(self) -> Any:
        """Return the value in Python's own types."""
        try:
            return yaml.constructor.SafeConstructor().construct_document(self._node)
        except yaml.YAMLError as error:
            raise self.wrong(getattr(error, "problem", None) or error) from error

    def text(self, what: str) -> str:
        """Return a text that is not empty and can be stored."""
        value = self.plain()
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"{what} must be a text, not {value!r}")
        try:
            return check_text(value, what)
        except BadInput as error:
            raise self.wrong(error) from error

    def flag(self, what: str) -> bool:
        """Return true or false."""
        value = self.plain()
        if not isinstance(value, bool):
            raise self.wrong(f"{what} must be true or false, not {value!r}")
        return value

    def number(self, what: str, least: float = -math.inf) -> float:
        """Return a finite number of at least ``least``."""
        value = self.plain()
        if isinstance(value, str):
            with suppress(ValueError):
                value = float(value)  # YAML 1.1 reads 1e3 as text
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < least:
            above = "" if least == -math.inf else f" of {least:g} or more"
            raise self.wrong(f"{what} must be a number{above}, not {value!r}")
        return float(value)

    def integer(self, what: str, least: float = -math.inf, most: float = math.inf) -> int:
        """Return an integer within ``least..most``."""
        value = self.plain()
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            within = "" if least == -math.inf else f" of {least:g} or more"
            if most < math.inf:
                within = f" within {least}..{most}"
            raise self.wrong(f"{what} must be an integer{within}, not {value!r}")
        return value

    def choice(self, what: str, known: Iterable[str]) -> str:
        """Return one of the known texts."""
        names, value = list(known), self.text(what)
        if value not in names:
            raise self.wrong(unknown(what, value, names))
        return value


def open_yaml(path: Path) -> YamlNode:
    """Return the root of a YAML file.

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
    _refuse_repeated(node, str(path))
    return YamlNode(node, str(path))


def _refuse_repeated(root: yaml.Node, file: str) -> None:
    """Refuse a key that a table has twice, at any depth: YAML takes the last."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # by an anchor
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
            found = set[str]()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in found:
                    raise YamlNode(key, file).wrong(f"{key.value!r} is duplicated")
                found.add(str(key.value))
