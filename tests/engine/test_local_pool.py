"""Whole searches on a real engine with a small random model."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from lotts_search import Budget, FairPool, LocalPool, asearch, search
from lotts_search.core.costs import Costs
from lotts_search.core.events import Event, TrialFinished
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
    with LocalPool(tiny_backbone(), {"redness": Redness()}, batch=4, threads=1) as pool:
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


def images_before_the_small_search_ends(pool, *, fair: bool) -> int:
    """Return how many images of a large search are complete when a small one ends that began after it."""
    made: list[str] = []

    async def one(name: str, images: int, where) -> None:
        def hear(event: Event) -> None:
            if isinstance(event, TrialFinished) and event.record.kind == "sample":
                made.append(name)

        common = {"strategy": "best-of-n", "verifier": "redness"} | SETTINGS
        await asearch("a red star", pool=where, images=images, on_event=hear, **common)
        made.append(f"{name} ended")

    async def both() -> None:
        shares = FairPool(pool, 6)
        with shares.share() as first, shares.share() as second:
            large = asyncio.create_task(one("large", 24, first if fair else pool))
            while "large" not in made:
                await asyncio.sleep(0.01)
            await one("small", 2, second if fair else pool)
            await large

    asyncio.run(both())
    return made[: made.index("small ended")].count("large")


def test_a_small_search_waits_for_a_large_one_unless_they_share_the_pool_fairly(pool):
    """Counted in images, of which two are computed at a time, so that the clock does not matter."""
    alone, shared = (images_before_the_small_search_ends(pool, fair=fair) for fair in (False, True))
    assert alone >= 22 and shared <= 12
