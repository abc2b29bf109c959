from __future__ import annotations

import pytest

from lotts_search.engine.engine import Engine
from lotts_search.work.requests import Sampling, State
from tests.tiny import run, sample, tiny_backbone


@pytest.fixture(scope="module")
def finished() -> State:
    """A finished sample of the tiny model, in four guided steps."""
    (result,) = run(Engine(tiny_backbone(), 2), sample(0, Sampling("a red circle", 4, 3.0)))
    assert result.state is not None
    return result.state
