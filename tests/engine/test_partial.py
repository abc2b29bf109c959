"""Half-denoised candidates on a real engine: from pure noise and inside a mask, scored on the way and branched."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lotts_search import BadInput, LocalPool, search
from lotts_search.testing import AnalyticPool
from lotts_search.work.masks import RandomMask
from lotts_search.work.requests import Predict, Segment
from tests.engine.test_local_pool import SETTINGS, Redness
from tests.scripted import Scripted
from tests.scripted import run as run_analytic
from tests.tiny import tiny_backbone

STEPS = SETTINGS["steps"]


@pytest.fixture(scope="module")
def pool():
    with LocalPool(tiny_backbone(), {"redness": Redness()}, batch=4, threads=1) as pool:
        yield pool


def run(script, pool, **arguments):
    return search(
        "a red star", strategy=Scripted(script), verifier="redness", pool=pool, nfe=1000, **SETTINGS | arguments
    )


def image(result, candidate):
    return result.images[candidate.key]


@pytest.mark.parametrize("solver", ["dpm", "ddim"])
def test_scored_at_every_step_from_pure_noise_on_it_is_the_same_sample(pool, solver):
    kept = {}

    async def script(search):
        one = await search.sample(3, stop=0)
        assert (one.step, one.nfe, one.complete) == (0, 0, False)
        while not one.complete:
            assert await search.score(one) == one.score
            one = await search.advance(one, one.step + 1)
        kept["parts"], kept["whole"] = one, await search.sample(3)

    result = run(script, pool, solver=solver)
    assert np.array_equal(image(result, kept["parts"]), image(result, kept["whole"]))
    assert kept["parts"].nfe == kept["whole"].nfe == STEPS
    assert (result.ledger.nfe, result.ledger.rows) == (2 * STEPS, 4 * STEPS)
    # The network calls are the scores'; the steps themselves cost nothing more.
    costs = {kind: sum(t.nfe for t in result.trials if t.kind == kind) for kind in ("score", "advance")}
    assert costs == {"score": STEPS, "advance": 0}
    assert result.ledger.decodes == STEPS + 2 and result.ledger.images == 2


def test_inside_a_mask_it_is_the_same_refinement(pool):
    kept = {}

    async def script(search):
        parent = await search.sample(0)
        mask = await search.localize(parent, RandomMask())
        one = await search.refine(parent, mask, seed=1, start=2, integrate=1, stop=3)
        while not one.complete:
            await search.score(one)
            one = await search.advance(one, one.step + 1)
        assert one.refined
        kept["parts"] = one
        kept["whole"] = await search.refine(parent, mask, seed=1, start=2, integrate=1)

    result = run(script, pool)
    assert np.array_equal(image(result, kept["parts"]), image(result, kept["whole"]))
    assert result.ledger.nfe == STEPS + 2 * (STEPS - 2)


def test_children_share_their_parents_prediction_and_differ_inside_the_mask_alone():
    kept = {}

    async def script(search):
        parent = await search.sample(0)
        mask = await search.localize(parent, RandomMask())
        half = await search.refine(parent, mask, seed=1, integrate=0, stop=5)
        await search.score(half)
        kept["children"] = [await search.advance(half, seed=seed) for seed in (None, 1, 2)]
        kept["parent"] = parent

    pool = AnalyticPool()
    result = run_analytic(script, pool)
    assert len([w for w in pool.asked if isinstance(w, Predict)]) == 1
    went_on = [w for w in pool.asked if isinstance(w, Segment) and w.state is not None and w.renoise is None]
    (predicted,) = {id(w.state.predicted) for w in went_on}
    assert predicted is not None and [t.nfe for t in result.trials if t.kind == "advance"] == [2.0] * 3
    (located,) = result.located.values()
    images = [image(result, child) for child in kept["children"]]
    for one, other in pairwise(images):
        assert not np.array_equal(one, other)
        assert np.array_equal(one[~located.mask], other[~located.mask])
        assert np.array_equal(one[~located.mask], image(result, kept["parent"])[~located.mask])


def test_steps_outside_the_schedule_are_refused():
    async def script(search):
        with pytest.raises(BadInput, match=r"stop must be within 0\.\.8, not 9"):
            search.sample(0, stop=9)
        with pytest.raises(BadInput, match=r"stop must be within 0\.\.8, not -1"):
            search.sample(0, stop=-1)
        noise = await search.sample(0, stop=0)
        with pytest.raises(BadInput, match=r"stop must be within 1\.\.8, not 0"):
            search.advance(noise, 0)
        await search.advance(noise)

    assert run_analytic(script).ledger.nfe == 8
