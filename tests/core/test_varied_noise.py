"""``search.vary``: steps taken again with noise near that of a candidate."""

from __future__ import annotations

import numpy as np
import pytest

from lotts_search.engine.solver import NOISE, coefficients
from lotts_search.errors import BadInput
from lotts_search.testing.analytic import analytic_info
from lotts_search.testing.mixture import schedule
from lotts_search.work.noise import draw
from tests.scripted import run

COUNT = 40_000


def test_varied_noise_is_standard_normal_and_as_near_as_its_share_says():
    """Also the variation of a variation; four standard errors of 40,000 numbers are 0.02."""
    lineage = ("seed 0", "branch@2 1")
    chain = [draw(5, lineage, "step", 2, (COUNT,))]
    for seed in range(3):
        lineage = (*lineage, f"vary@2 0.6 {seed}")
        chain.append(draw(5, lineage, "step", 2, (COUNT,)))
    correlations = np.cov(np.stack(chain))
    expected = 0.8 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))  # √(1 − 0.6²) per variation
    assert correlations == pytest.approx(expected, abs=0.02)
    assert np.abs(np.mean(chain, axis=1)).max() < 0.02
    assert np.mean(chain[3] ** 4) == pytest.approx(3, abs=0.2)
    # Nearness to the noise before is all that they share: what is new is uncorrelated with everything before it.
    fresh = (chain[3] - 0.8 * chain[2]) / 0.6
    assert np.abs(np.stack(chain[:3]) @ fresh / COUNT).max() < 0.02


def test_variations_differ_by_seed_and_later_steps_have_new_noise():
    base = ("seed 0", "branch@2 1")
    one, other = (draw(5, (*base, f"vary@2 0.6 {seed}"), "step", 2, (COUNT,)) for seed in (1, 2))
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(0.64, abs=0.02)
    later, plain = (draw(5, lineage, "step", 3, (COUNT,)) for lineage in ((*base, "vary@2 0.6 1"), base))
    assert abs(np.corrcoef(later, plain)[0, 1]) < 0.02
    filled = np.empty(COUNT, np.float32)
    assert draw(5, (*base, "vary@2 0.6 1"), "step", 2, (COUNT,), filled) is filled and np.array_equal(filled, one)


def test_a_varied_step_is_the_parents_step_with_the_varied_noise():
    kept = {}

    async def script(search):
        parent = await search.sample(0, stop=3)
        await search.score(parent)
        pivot = await search.child(parent, 4, 1)
        varied = await search.vary(pivot, 0.3, seed=7)
        again = await search.vary(varied, 0.3, seed=7)
        same = await search.vary(pivot, 0.0, seed=8)
        assert (varied.parent, varied.step, varied.nfe) == (parent, 4, 4)
        assert varied.lineage == (*pivot.lineage, "vary@3 0.3 7") and again.lineage == (*varied.lineage, "vary@3 0.3 7")
        kept.update({name: search._book.states[one.key].latent for name, one in
                     {"pivot": pivot, "varied": varied, "again": again, "same": same}.items()})  # fmt: skip
        await search.advance(varied)

    result = run(script)
    assert result.ledger.nfe == 3 + 1 + 4
    latents, scale = kept, coefficients(schedule(8), 1.0, "dpm")[1, 3, NOISE]
    base = ("seed 0", "branch@3 1")
    noise = {
        "pivot": draw(0, base, "step", 3, (1, 6, 6)),
        "varied": draw(0, (*base, "vary@3 0.3 7"), "step", 3, (1, 6, 6)),
    }
    moved = latents["varied"] - latents["pivot"]
    assert moved == pytest.approx(scale * (noise["varied"] - noise["pivot"]), abs=1e-5) and np.abs(moved).max() > 1e-3
    assert np.array_equal(latents["same"], latents["pivot"]) and not np.array_equal(latents["again"], latents["varied"])


def test_the_prompt_of_a_variation_is_the_candidates():
    async def script(search):
        parent = await search.sample(0, stop=3)
        pivot = await search.advance(parent, 4, seed=1, prompt="blue star")
        varied = await search.vary(pivot, 0.3, seed=7)
        assert search._book.samplings[varied.key].prompt == "blue star"
        await search.advance(varied)

    run(script)


def test_what_has_no_noise_to_vary_is_refused():
    async def refused(search, candidate, share=0.5):
        with pytest.raises(BadInput) as caught:
            search.vary(candidate, share, 0)
        return str(caught.value)

    async def script(search):
        start, two, whole = [await search.sample(seed, stop=stop) for seed, stop in ((0, 0), (1, 2), (2, 8))]
        for candidate in (start, two, whole, await search.advance(two, 4)):
            assert "by a single step has a noise to vary" in await refused(search, candidate)
        child = await search.child(two, 3, 1)
        assert "must be within 0..1, not 1.5" in await refused(search, child, 1.5)
        composed = await search.compose([child, await search.child(two, 3, 2)], [[0, 1]])
        assert "single step" in await refused(search, composed)

    run(script)
    assert analytic_info().defaults.steps == 8
