"""The console of the commands."""

from __future__ import annotations

from typing import Any

import rich.console


class Console(rich.console.Console):
    """A console of rich that prints texts as they are.

    Rich's own takes ``[draft]`` in a path, a label or an error for a style and leaves it out, fails at ``[/draft]``, and turns
    ``:snake:`` into a picture.

    Args:
        options: those of :class:`rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)
