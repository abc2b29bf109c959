"""TTGen on a real network, autoencoder and engine, with a rewriter in its own thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lotts_search import search
from lotts_search.core.result import SearchResult
from lotts_search.engine.local_pool import LocalPool
from lotts_search.strategies.ttgen import TTGen
from lotts_search.work.requests import Bytes, Rewrite
from tests.actors.fakes import Brightness
from tests.tiny import tiny_backbone

PROMPT = "a red circle"


@dataclass
class Writer:
    """Writes what the given function returns, and keeps the images that it saw."""

    write: Callable[[Rewrite], Sequence[str]]
    batch: int = 4
    parallel: int = 1
    timeout: float = 60.0
    requirements: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.seen: list[Bytes] = []

    def rewrite(self, requests: Sequence[Rewrite]) -> list[Sequence[str]]:
        self.seen += [request.image for request in requests]
        return [self.write(request) for request in requests]


def ttgen(writer: Writer, strategy: Any, **options: Any) -> SearchResult:
    with LocalPool(tiny_backbone(), {"brightness": Brightness()}, 4, 1, rewriters={"writer": writer}) as pool:
        return search(
            PROMPT, strategy=strategy, pool=pool, verifier="brightness", rewriter="writer", images=1, steps=5, guidance=3.0,
            **options,
        )  # fmt: skip


@pytest.mark.parametrize("solver", [{"solver": "ddim", "eta": 0.0}, {"solver": "ddim", "eta": 0.6}, {"eta": 1.0}])
def test_a_single_original_prompt_equals_plain_sampling(solver: dict[str, Any]) -> None:
    writer = Writer(lambda request: [request.prompt] * request.count)
    tried, plain = ttgen(writer, TTGen(prompts=1, injection=0.6), **solver), ttgen(writer, "resampling", **solver)
    assert len(writer.seen) == 3 and tried.ledger.rewrites == 3
    assert tried.image is not None and np.array_equal(tried.image, plain.image)  # type: ignore[arg-type]
    assert tried.ledger.nfe == plain.ledger.nfe == 5 and tried.ledger.rows == plain.ledger.rows == 10


def test_the_rewriter_sees_the_prediction_whose_score_won() -> None:
    """x0 previews cost no network row, and the rewriter sees the image that won the previous step."""
    writer = Writer(lambda request: [f"a {colour} square" for colour in ("green", "blue", "red")])
    result = ttgen(writer, TTGen(injection=0.6), solver="ddim", eta=0.0)
    assert result.ledger.nfe == 5 + 3 * 2 and result.ledger.rows == 22
    scored = [t for t in result.trials if t.kind == "score" and t.decodes]
    assert len(scored) == 9
    for step in range(2):
        best = max(scored[3 * step : 3 * step + 3], key=lambda trial: trial.score or 0)
        assert np.array_equal(writer.seen[step + 1], result.images[best.trial_id])
        assert best.score == pytest.approx(float(writer.seen[step + 1].mean()), abs=1e-3)
    assert len({t.score for t in scored}) == 9
