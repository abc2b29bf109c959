"""Arguments that begin with a dash, and paths that are empty."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand

from lotts_search.errors import BadInput

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""Base class of the parser's errors. Typer does not export it, and newer versions have a parser of their own."""


class Command(TyperCommand):
    """A command whose errors say how an argument that begins with a dash is written, and which refuses empty paths."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except _USAGE_ERROR as error:
            arguments = [p.name for p in self.params if isinstance(p, TyperArgument)]
            word = self._dashed(given)
            if arguments and word is not None and not getattr(error, "possibilities", None):
                written = f"lotts-search {self.name} [OPTIONS] -- {shlex.quote(word)}"
                hint = f"If {word!r} is the {arguments[0]}, write it last, after two dashes: {written}"
                error.message = f"{error.message.rstrip('.')}. {hint}" if error.message else hint
            raise
        self._refuse_empty_paths(ctx, given)
        return rest

    def _refuse_empty_paths(self, ctx: Any, words: list[str]) -> None:
        """Refuse a path that is empty, as that of an unset variable is: it would be the current folder.

        Raises:
            BadInput: the message names the option or argument.
        """
        values, hints = self.make_parser(ctx).parse_args(args=words)[0], get_type_hints(self.callback)
        for parameter in self.params:
            label = (
                str(parameter.metavar or parameter.name) if isinstance(parameter, TyperArgument) else parameter.opts[0]
            )
            value = values.get(parameter.name)
            texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
            if _names_path(label, hints.get(parameter.name)) and any(not str(text).strip() for text in texts):
                raise BadInput(f"the path of {label} is empty: name a folder or a file; the current folder is .")

    def _dashed(self, words: list[str]) -> str | None:
        """Return the first word that begins with a dash and is neither an option nor after ``--``."""
        known = {"--help", "-h", "--"}
        known |= {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        before = words[: words.index("--")] if "--" in words else words
        return next((w for w in before if w.startswith("-") and w.partition("=")[0] not in known), None)


def _names_path(label: str, hint: Any) -> bool:
    """Return whether a parameter holds a path, or one that may also be a URL."""
    return (
        label == "--out"
        or label.startswith("RUN")
        or hint is Path
        or any(_names_path("", one) for one in get_args(hint))
    )
