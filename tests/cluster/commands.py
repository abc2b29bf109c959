"""Commands that files of the cluster run: their options exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from lotts_search.cli import app


def check_command(words: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command of ``lotts-search``; an error is raised where one is unknown."""
    command: Any = typer.main.get_command(app)
    found = command.commands[words[0]]
    options: dict[str, Any] = found.make_context(words[0], list(words[1:])).params
    return options
