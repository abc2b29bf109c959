"""Whole searches on a real engine with a small random model."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from lotts_search import Budget, LocalPool, asearch, search
from lotts_search.core.costs import Costs
from lotts_search.strategies.lotts import LoTTS
from lotts_search.testing.conformance import tree
from lotts_search.work.masks import ErrorContrastMask
from lotts_search.work.requests import Bytes
from tests.tiny import tiny_backbone

SETTINGS = {"steps": 6, "guidance": 2.0}
STRATEGY = LoTTS(depth=2, start=3, integrate=1, mask=ErrorContrastMask(levels=(400,)))


class Redness:
    name = "redness"
    requirements = ()

    def score(self, prompts: list[str], images: Bytes) -> np.ndarray:
        return images[..., 0].mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def pool():
    with LocalPool(tiny_backbone(), {"redness": Redness()}, max_batch=4, threads=1) as pool:
        yield pool


def test_plan_equals_ledger_and_searches_side_by_side_do_not_touch_each_other(pool):
    common = {"strategy": STRATEGY, "verifier": "redness", "pool": pool, "nfe": 40} | SETTINGS

    async def together():
        return await asyncio.gather(*(asearch("a red star", seed=seed, **common) for seed in (0, 1)))

    alone = search("a red star", **common)
    both = asyncio.run(together())
    assert tree(both[0]) == tree(alone) != tree(both[1])
    assert all(np.array_equal(image, both[0].images[key]) for key, image in alone.images.items())

    plan = STRATEGY.plan(Budget(nfe=40), Costs.of(pool.info, alone.sampling))
    assert plan.trials == dict(Counter(t.kind for t in alone.trials if t.kind != "score"))
    assert (plan.nfe, alone.ledger.rows, alone.ledger.images) == (alone.ledger.nfe, 2 * plan.nfe, alone.ledger.scores)
    assert alone.score == max(float(image[..., 0].mean()) for image in alone.images.values())


def test_a_image_of_a_search_can_be_refined_in_another(pool):
    common = {"verifier": "redness", "pool": pool} | SETTINGS
    first = search("a red star", strategy="best-of-n", images=1, **common)
    result = search("a red star", strategy=STRATEGY, nfe=12, image=first.image, **common)
    assert [t.kind for t in result.trials if t.kind != "score"][:3] == ["encode", "localize", "refine"]
    assert result.ledger.nfe <= 12 and result.best_refined is not None
