"""What follows when a piece of work is cancelled."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def when_cancelled(future: Future[Any], owner: T, then: Callable[[T], object]) -> None:
    """Call ``then(owner)`` when ``future`` is cancelled, if ``owner`` still exists.

    A future keeps its callbacks for ever. One that holds its owner, which holds the future, would be a cycle, and the arrays of
    its result would stay until the garbage collector comes by.
    """
    found = weakref.ref(owner)

    def call(done: Future[Any]) -> None:
        if done.cancelled() and (alive := found()) is not None:
            then(alive)

    future.add_done_callback(call)
