"""SIGTERM ends a program as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM stop a program as Ctrl-C does: cluster managers send it before they kill."""

    def end(*_: object) -> None:
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        else:  # a background job of a script ignores SIGINT, and asyncio then installs no handler
            raise KeyboardInterrupt

    before: Any = None
    with suppress(ValueError):  # not in the main thread: the caller owns signal handling
        before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
