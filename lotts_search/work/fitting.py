"""Batched operations in parts that fit into memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TypeVar

from lotts_search.errors import notice

T = TypeVar("T")


class Fitting:
    """Runs a batched operation; once memory does not suffice, in parts of half as many rows, and so on.

    Args:
        what: the operation, for the notice, e.g. ``the network of sdxl``.

    Attributes:
        rows: most rows of a part; infinite until memory has run out.
    """

    def __init__(self, what: str):
        self.what = what
        self.rows = math.inf

    def run(self, count: int, action: Callable[[slice], T]) -> list[T]:
        """Return the results of ``action`` on all parts of ``count`` rows, in order. Reports once that they are smaller than before.

        Raises:
            Exception: what ``action`` raised; of memory, only for a single row.
        """
        before = self.rows
        while True:
            size = int(min(self.rows, count))
            try:
                results = [action(slice(first, min(first + size, count))) for first in range(0, count, size)]
                break
            except Exception as error:
                if size == 1 or not out_of_memory(error):
                    raise
                self.rows = math.ceil(size / 2)
            _release()  # outside of the handler: its traceback holds the memory of the operation
        if self.rows < before:
            notice(
                f"out of memory: {self.what} takes at most {self.rows} rows at a time from now on, and results have the bits of such"
            )
        return results


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory of a device or of this machine did not suffice."""
    text = str(error).lower()
    return isinstance(error, MemoryError | RuntimeError) and any(
        sign in text for sign in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def _release() -> None:
    """Return cached memory of torch, if it is loaded, to the device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
