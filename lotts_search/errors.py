"""Errors that users meet. ``BadInput`` maps to exit code 2 on the command line, ``Failure`` to 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LottsError(Exception):
    """Base of every error that this package raises on purpose."""


class BadInput(LottsError, ValueError):
    """Something the caller gave is wrong; the message names the bad value and the good ones."""


class BudgetTooSmall(BadInput):
    """The budget does not pay for a single sample."""


class Failure(LottsError, RuntimeError):
    """Something broke while working: a dead actor, a broken file, NaN latents."""


class PoolClosed(Failure):
    """The pool is closed or broken: this work was not done, and no other will be."""


class BudgetExhausted(LottsError):
    """A trial was refused because the budget does not cover it; it ends that branch of the search only."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """The error for a name that is not registered, with the nearest and all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return BadInput(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}" if hint else
                    f"unknown {kind} {name!r}. Known: {', '.join(names)}")  # fmt: skip
