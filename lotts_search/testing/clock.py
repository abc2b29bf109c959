"""Time that does not depend on the machine, for tests of searches under a time limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

from lotts_search.testing.analytic import AnalyticPool


@contextmanager
def seconds_as_requests(pool: AnalyticPool) -> Iterator[None]:
    """Let a second pass with each request to a pool instead of by the clock: a budget of 100 seconds ends after 100
    requests, on every machine."""
    clock = SimpleNamespace(monotonic=lambda: float(len(pool.asked)))
    with patch("lotts_search.core.virtual_time.time", clock):
        yield
