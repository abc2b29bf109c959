"""The noise that strategies choose, on a real engine: steps taken again with varied noise, and start noise with other low
frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from lotts_search import search
from lotts_search.engine.local_pool import LocalPool
from lotts_search.engine.solver import NOISE, coefficients
from lotts_search.work.noise import draw, start_noise
from tests.actors.fakes import Brightness
from tests.scripted import Scripted
from tests.tiny import tiny_backbone

STEPS = 5


def run(script):
    backbone = tiny_backbone()
    with LocalPool(backbone, {"brightness": Brightness()}, 4, 1) as pool:
        result = search(
            "a red circle", strategy=Scripted(script), pool=pool, verifier="brightness", nfe=100, steps=STEPS
        )
    return backbone, result


def test_a_varied_step_differs_from_the_step_by_its_noise_alone():
    kept = {}

    async def script(handle):
        parent = await handle.sample(0, stop=2)
        await handle.score(parent)
        child = await handle.child(parent, 3, 1)
        for name, share in (("same", 0.0), ("near", 0.3)):
            varied = await handle.vary(child, share, seed=7)
            kept[name] = handle._book.states[varied.key].latent
        kept["child"] = handle._book.states[child.key].latent
        await handle.advance(child)

    backbone, _ = run(script)
    shape, lineage = backbone.info.latent, ("seed 0", "branch@2 1")
    assert np.array_equal(kept["same"], kept["child"])
    scale = coefficients(backbone.schedule(STEPS), 1.0, "dpm")[1, 2, NOISE]
    noises = (draw(0, one, "step", 2, shape) for one in ((*lineage, "vary@2 0.3 7"), lineage))
    near, plain = noises
    assert kept["near"] - kept["child"] == pytest.approx(scale * (near - plain), abs=1e-4)
    assert np.abs(kept["near"] - kept["child"]).max() > 0.01


def test_a_trajectory_starts_from_the_noise_with_other_low_frequencies():
    kept = {}

    async def script(handle):
        values = np.full((handle.latent[0], 2, 2), 0.5)
        noise = handle.low(handle.fresh(3), values)
        start = await handle.sample(noise, stop=0)
        kept.update(noise=noise, latent=handle._book.states[start.key].latent)
        await handle.advance(start)

    backbone, result = run(script)
    expected = start_noise(0, kept["noise"], backbone.info.latent) * np.float32(backbone.schedule(STEPS).start)
    assert np.array_equal(kept["latent"], expected)
    assert result.image is not None and result.best.lineage[1].startswith("low 2x2 ")


@pytest.mark.parametrize(
    "strategy", ["epsilon-greedy", "spectral-evolution", "partial-refinement", "successive-halving", "critique"]
)
def test_the_strategies_run_on_a_real_engine(strategy):
    class Writer:
        requirements, batch, parallel, timeout = (), 4, 1, 60.0

        def rewrite(self, requests):
            return [[f"{one.prompt}, {number}" for number in range(one.count)] for one in requests]

    settings = {"size": 2} if strategy == "spectral-evolution" else {}
    with LocalPool(tiny_backbone(), {"brightness": Brightness()}, 4, 1, rewriters={"writer": Writer()}) as pool:
        result = search(
            "a red circle", strategy=strategy, settings=settings, pool=pool, verifier="brightness", nfe=24, steps=STEPS,
        )  # fmt: skip
    assert result.image is not None and not result.failures.count and result.ledger.nfe > 18
