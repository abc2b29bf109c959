"""The garbage collector during a study."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let the collector run rarely, and not look at what exists already.

    It looks for cycles whenever objects have been made, and a driver of thousands of searches makes and keeps many: that took a
    quarter of its time. Results are in no cycle, so their arrays do not wait for it.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
