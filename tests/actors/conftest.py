"""Start a small private Ray for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ray: starts a small Ray on this machine")


@pytest.fixture(scope="module")
def ray_up() -> Iterator[None]:
    """Start Ray with slots for a few actors; pools find it and leave it running."""
    pytest.importorskip("ray")
    from lotts_search.actors.connection import connect

    connection = connect("local", {"CPU": 8, "GPU": 0}, object_store_mb=100)
    yield
    connection.close()
