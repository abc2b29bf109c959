"""Read ``key=value`` texts by the types of a dataclass's fields or of a function's keyword arguments, and describe those."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from lotts_search.errors import BadInput, check_text, unknown
from lotts_search.work.masks import GivenMask, MaskSource, kind_of, mask_from_dict, mask_kind, mask_kinds

T = TypeVar("T")
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Setting:
    """A field of a dataclass: its name, its type in words, its default and its line of the docstring."""

    name: str
    type: str
    default: object
    doc: str

    @property
    def shown(self) -> str:
        """The default as it is typed; of mask sources their kinds."""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return ", ".join(kind_of(value) if isinstance(value, MaskSource) else str(value) for value in values)


def build(cls: type[T], settings: Mapping[str, object], what: str) -> T:
    """Return an instance of a dataclass.

    Args:
        settings: values, or texts to parse, by field.
        what: name of the instance in messages, e.g. ``strategy 'lotts'``.

    Raises:
        BadInput: an unknown field, or a value of the wrong type; the message names the valid ones.
    """
    values = _read(settings, _hints(cls), what)
    try:
        return cls(**values)
    except TypeError as error:
        raise BadInput(f"{what}: {error}") from error


def arguments(function: Callable[..., Any], settings: Mapping[str, object], what: str) -> dict[str, Any]:
    """Return the keyword arguments of a function.

    Args:
        settings: values, or texts to parse, by parameter.
        what: name of the function's result in messages, e.g. ``verifier 'clip-score'``.

    Raises:
        BadInput: an unknown or missing argument, or a value of the wrong type; the message names the valid ones.
    """
    values = _read(settings, _parameter_hints(function), what)
    for name, parameter in _parameters(function).items():
        if parameter.default is parameter.empty and name not in values:
            raise BadInput(f"{what} needs {name}")
    return values


def describe_arguments(function: Callable[..., Any]) -> list[Setting]:
    """Return the keyword arguments of a function in order, with texts from the ``Args:`` section of its docstring."""
    docs, hints = _section(function.__doc__ or "", "Args:"), _parameter_hints(function)
    return [
        Setting(name, _words(hints[name]), "" if one.default is one.empty else one.default, docs.get(name, ""))
        for name, one in _parameters(function).items()
    ]


def _read(settings: Mapping[str, object], hints: Mapping[str, Any], what: str) -> dict[str, Any]:
    values = {}
    for name, value in settings.items():
        if name not in hints:
            if not hints:
                raise BadInput(f"{what} has no settings: leave out {name}")
            raise unknown(f"setting of {what}:", name, hints)
        if isinstance(value, str):
            check_text(value, f"{name} of {what}")
        try:
            values[name] = _value(value, hints[name])
        except (ValueError, TypeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{name} of {what} must be {_words(hints[name])}, not {value!r}") from error
    return values


def describe(cls: type[Any]) -> list[Setting]:
    """Return the fields of a dataclass in order, with texts from the ``Attributes:`` sections of its docstrings."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docs |= _attribute_docs(base.__doc__ or "")
    hints = _hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        found.append(Setting(field.name, _words(hints[field.name]), default, docs.get(field.name, "")))
    return found


def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name: one for name, one in inspect.signature(function).parameters.items() if one.kind in named}


def _parameter_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's parameters; the type of its result may be known to type checkers alone."""
    names = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__globals__", {})
    bare = {name: str if one.annotation is one.empty else one.annotation for name, one in _parameters(function).items()}
    return typing.get_type_hints(type("Parameters", (), {"__annotations__": bare}), names)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _value(value: object, hint: Any) -> object:
    """Return ``value`` as one of the types of ``hint``; raise ValueError if it fits none of them."""
    alternatives = _alternatives(hint)
    if isinstance(value, str) and value.lower() == "none" and type(None) in alternatives:
        return None
    if MaskSource in alternatives and isinstance(value, str | Mapping):
        return _mask(value)
    for alternative in alternatives:
        try:
            return _parsed(value, alternative) if isinstance(value, str) else _checked(value, alternative)
        except BadInput:
            raise
        except ValueError:
            continue
    raise ValueError


def _parsed(text: str, hint: Any) -> object:
    origin = typing.get_origin(hint)
    if origin is Literal and text in typing.get_args(hint):
        return text
    if origin is dict:
        return _checked(json.loads(text), hint)
    if origin is tuple:
        return tuple(_parsed(part.strip(), typing.get_args(hint)[0]) for part in text.split(","))
    if hint is bool and text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    if hint in (int, float, str):
        return hint(text)
    if hint is bytes:
        return _checked(text, hint)
    raise ValueError


def _checked(value: object, hint: Any) -> object:
    origin = typing.get_origin(hint)
    if origin is Literal:
        good = value in typing.get_args(hint)
    elif origin is tuple:
        if isinstance(value, str):
            raise ValueError
        return tuple(_checked(part, typing.get_args(hint)[0]) for part in typing.cast(tuple[object, ...], value))
    elif origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError
        keys, values = typing.get_args(hint)
        return {_checked(key, keys): _checked(one, values) for key, one in value.items()}
    elif hint is MaskSource and isinstance(value, str | Mapping):
        return _mask(value)
    elif hint is bytes:  # base64 in JSON
        good = isinstance(value, bytes | str)
    elif hint is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        good = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if not good:
        raise ValueError
    return value


def _mask(value: str | Mapping[str, object]) -> MaskSource:
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    if isinstance(value, Mapping):
        kind, settings = str(value.get("kind")), {name: one for name, one in value.items() if name != "kind"}
        return mask_from_dict({"kind": kind} | _read(settings, _hints(mask_kind(kind)), f"mask {kind!r}"))
    if value.lower().endswith(".png"):
        try:
            return GivenMask(Path(value).read_bytes())
        except OSError as error:
            raise BadInput(f"the mask {value} cannot be read: {error.strerror}") from error
    return mask_from_dict(value)


def _words(hint: Any) -> str:
    words = []
    for alternative in _alternatives(hint):
        if alternative is MaskSource:
            word = " or ".join(mask_kinds()) + " or package.module:Class (or JSON with its settings, or a PNG file)"
        elif typing.get_origin(alternative) is Literal:
            word = " or ".join(str(choice) for choice in typing.get_args(alternative))
        elif typing.get_origin(alternative) is dict:
            word = "JSON of names with " + _words(typing.get_args(alternative)[1])
        elif typing.get_origin(alternative) is tuple:
            word = f"{_words(typing.get_args(alternative)[0])}, or several separated by commas"
        else:
            word = _WORDS.get(alternative, getattr(alternative, "__name__", str(alternative)))
        if word not in words:
            words.append(word)
    return " or ".join(words)


def _attribute_docs(doc: str) -> dict[str, str]:
    """Return ``{name: text}`` of the ``Attributes:`` section of a docstring."""
    return _section(doc, "Attributes:")


def _section(doc: str, title: str) -> dict[str, str]:
    _, found, section = inspect.cleandoc(doc).partition(f"{title}\n")
    docs: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines() if found else []:
        if line and not line.startswith(" "):
            break
        if match := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            docs |= dict.fromkeys(names, match[2])
        elif line.strip():
            docs |= {name: f"{docs[name]} {line.strip()}" for name in names}
    return docs
