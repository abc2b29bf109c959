"""Errors that users see. On the command line ``BadInput`` exits with code 2, ``Failure`` with 1."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path


class LottsError(Exception):
    """Base class of all errors that this package raises on purpose."""


class BadInput(LottsError, ValueError):
    """An argument is wrong; the message names the bad value and the valid ones."""


class BudgetTooSmall(BadInput):
    """The budget does not cover a single sample."""


class Failure(LottsError, RuntimeError):
    """An error at run time: a dead actor, a broken file, NaN latents."""


class LostWork(Failure):
    """Workers died each time that they ran this work and nothing else. A study retries it when it is resumed."""

    MARK = "lost work: "

    def __init__(self, what: str):
        super().__init__(f"{self.MARK}{what}")


class PoolClosed(Failure):
    """The pool is closed or broken; it does no more work."""


class BudgetExhausted(LottsError):
    """The remaining budget does not cover a trial; only that branch of the search ends."""


class Notice(UserWarning):
    """A warning that something was skipped, truncated, converted or ignored. The command line prints it once."""


_NOTED: ContextVar[list[str] | None] = ContextVar("noted", default=None)


def notice(text: str) -> None:
    """Report something that is not an error, as a warning of the category :class:`Notice`, or to :func:`noted`."""
    notes = _NOTED.get()
    if notes is None:
        warnings.warn(text, Notice, stacklevel=3)
    elif text not in notes:
        notes.append(text)


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect the notices of a block and of the tasks that it starts, instead of warnings: several searches in one process may
    have different readers."""
    notes: list[str] = []
    token = _NOTED.set(notes)
    try:
        yield notes
    finally:
        _NOTED.reset(token)


def described(error: BaseException) -> str:
    """Return type and text of an exception, and the line of a plug-in's code that raised it."""
    return f"{type(error).__name__}: {error}{place_of(error)}"


def place_of(error: BaseException) -> str:
    """Return `` (my_masks.py, line 34)``, the last line of a plug-in's code that an exception passed; "" if it passed none."""
    others = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(other) for other in others):
            return f" ({path.name}, line {frame.lineno})"
    return ""


def check_text(text: str, what: str) -> str:
    """Return a text that can be stored in files and on command lines.

    Raises:
        BadInput: it has a NUL character, or half of a surrogate pair (from bytes of a command line that are not UTF-8).
    """
    if "\0" in text:
        raise BadInput(f"{what}: a text holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{what}: a text holds half of a surrogate pair, U+{ord(text[error.start]):04X}") from error
    return text


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """Return the error for an unknown name; its message suggests the nearest name and lists all known ones."""
    names = sorted(known)
    return BadInput(f"unknown {kind} {name!r}{nearest(name, names) or '.'} Known: {', '.join(names)}")


def refuse_renamed(cls: type, names: Mapping[str, str]) -> None:
    """Refuse a class that defines a name by its old spelling, which would have no effect.

    Args:
        names: new names by old ones.

    Raises:
        BadInput: the class defines an old one.
    """
    for old in names.keys() & vars(cls).keys():
        raise BadInput(f"{old} of {cls.__name__} is now called {names[old]}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'NAME'?`` with the nearest of the known names; "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
