"""The text that names a verifier: a registered name or ``package.module:Class``, and its settings.

``pickscore:device=cuda,dtype=float16`` is the verifier ``pickscore`` with two settings. The same text is typed on the
command line, names the verifier in a pool and is written into recipes and trial tables. Values that hold a comma, and
nested ones, are JSON: ``weighted:of={"pickscore": 1, "clip-score": 0.5}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lotts_search.errors import BadInput

SOURCES = ("weights", "tokenizer", "clip", "reference")
"""Settings that name files, folders or hub ids; a change of their contents is a change of the verifier."""
_SPEC = re.compile(r"(?P<name>[^:=,{}]+(?::[A-Za-z_][\w.]*)?)(?::(?P<settings>\s*[A-Za-z_][\w-]*\s*=.*)?)?", re.DOTALL)
_PAIR = re.compile(r"\s*([A-Za-z_][\w-]*)\s*=\s*", re.DOTALL)


@dataclass(frozen=True)
class VerifierSpec:
    """A verifier by name and settings; ``str()`` gives its canonical text, which :meth:`parse` reads.

    Attributes:
        name: registered name or ``package.module:Class``.
        settings: keyword arguments of its ``load``: values, or texts to parse.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> VerifierSpec:
        """Read ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``.

        Raises:
            BadInput: the text has another form, or a setting is given twice.
        """
        found = _SPEC.fullmatch(text.strip())
        if found is None:
            raise BadInput(f"a verifier is NAME or NAME:KEY=VALUE,KEY=VALUE, not {text!r}")
        settings: dict[str, Any] = {}
        for key, value in _pairs(found["settings"] or "", text):
            if key in settings:
                raise BadInput(f"verifier {text!r}: {key} is given twice")
            settings[key] = value
        return cls(found["name"].strip(), settings)

    @classmethod
    def of(cls, value: object) -> VerifierSpec:
        """Read what a YAML file holds: a text as for :meth:`parse`, or ``{NAME: {KEY: VALUE}}``.

        Raises:
            BadInput: it is neither.
        """
        if isinstance(value, str) and value.strip():
            return cls.parse(value)
        if isinstance(value, Mapping) and len(value) == 1:
            ((name, settings),) = value.items()
            if isinstance(name, str) and isinstance(settings, Mapping | None):
                return cls(name, {str(key): setting for key, setting in (settings or {}).items()})
        raise BadInput(f"a verifier is a name, or a name with a table of settings, not {value!r}")

    @property
    def parts(self) -> list[str]:
        """The verifiers that it combines by its setting ``of``, as texts; raise BadInput if that is something else."""
        combined = self.settings.get("of", ())
        if not isinstance(combined, Iterable):
            raise BadInput(f"verifier {self.name!r}: of must name verifiers, not {combined!r}")
        return [str(name) for name in (combined.split(",") if isinstance(combined, str) else combined)]

    @property
    def column(self) -> str:
        """NAME in the column ``metric_NAME`` of a trial table: the registered name, or the class alone."""
        return self.name.rpartition(":")[2]

    def within(self, folder: Path) -> VerifierSpec:
        """Return the same with relative paths taken from ``folder``: texts that begin with ``./`` or ``../``, and the names of
        its files and folders in the settings :data:`SOURCES`; also in the verifiers that it combines."""

        def placed(name: str, value: Any) -> Any:
            if name == "of":
                parts = [str(VerifierSpec.parse(part).within(folder)) for part in self.parts]
                return dict(zip(parts, value.values(), strict=True)) if isinstance(value, Mapping) else parts
            if not isinstance(value, str) or Path(value).is_absolute():
                return value
            inside = value.startswith(("./", "../")) or (name in SOURCES and value and (folder / value).exists())
            return str(folder / value) if inside else value

        return VerifierSpec(self.name, {name: placed(name, value) for name, value in self.settings.items()})

    def __str__(self) -> str:
        pairs = ",".join(f"{key}={_written(value)}" for key, value in sorted(self.settings.items()))
        return f"{self.name}:{pairs}" if pairs else self.name


def _pairs(text: str, whole: str) -> Iterator[tuple[str, Any]]:
    """Split ``KEY=VALUE,KEY=VALUE``; a value that begins as JSON does ends where its JSON ends."""
    position = 0
    while position < len(text):
        key = _PAIR.match(text, position)
        if key is None:
            raise BadInput(f"verifier {whole!r}: KEY=VALUE is expected at {text[position:]!r}")
        position = key.end()
        if text[position : position + 1] in ("{", "[", '"'):
            try:
                value, position = json.JSONDecoder().raw_decode(text, position)
            except json.JSONDecodeError as error:
                raise BadInput(f"verifier {whole!r}: {key[1]} is not JSON: {error.msg}") from error
            comma = re.compile(r"\s*(,|$)").match(text, position)
            if comma is None:
                raise BadInput(f"verifier {whole!r}: a comma is expected at {text[position:]!r}")
            position = comma.end()
        else:
            end = text.find(",", position)
            end = len(text) if end < 0 else end
            value, position = text[position:end].strip(), end + 1
        yield key[1].replace("-", "_"), value


def _written(value: object) -> str:
    """Write a value so that :func:`_pairs` reads the same text or the same JSON."""
    if isinstance(value, str):
        plain = value == value.strip() and "," not in value and value[:1] not in ("{", "[", '"')
        return value if plain else json.dumps(value, ensure_ascii=False)
    if value is None:
        return "none"
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
