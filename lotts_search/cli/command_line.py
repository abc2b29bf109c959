"""Arguments that begin with a dash."""

from __future__ import annotations

import shlex
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""Base class of the parser's errors. Typer does not export it, and newer versions have a parser of their own."""


class Command(TyperCommand):
    """A command whose errors say how an argument that begins with a dash is written."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except _USAGE_ERROR as error:
            arguments = [p.name for p in self.params if isinstance(p, TyperArgument)]
            word = self._dashed(given)
            if arguments and word is not None and not getattr(error, "possibilities", None):
                written = f"lotts-search {self.name} [OPTIONS] -- {shlex.quote(word)}"
                hint = f"If {word!r} is the {arguments[0]}, write it last, after two dashes: {written}"
                error.message = f"{error.message.rstrip('.')}. {hint}" if error.message else hint
            raise

    def _dashed(self, words: list[str]) -> str | None:
        """Return the first word that begins with a dash and is neither an option nor after ``--``."""
        known = {"--help", "-h", "--"}
        known |= {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        before = words[: words.index("--")] if "--" in words else words
        return next((w for w in before if w.startswith("-") and w.partition("=")[0] not in known), None)
