"""The closed-form models of ``lotts_search.testing`` against the engine that runs real models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lotts_search.engine.engine import Engine
from lotts_search.testing.analytic import AnalyticPool, Mixture, Model, analytic_info
from lotts_search.testing.gaussian import Gaussian
from lotts_search.testing.mixture import schedule
from lotts_search.work.model import ModelInfo, Schedule
from lotts_search.work.requests import Fresh, Predict, Region, Sampling, Segment, State
from tests.tiny import run

STEPS = 6


class InClosedForm:
    """A model in closed form behind the interface of real ones; its raw output is the x0 prediction."""

    def __init__(self, model: Model, info: ModelInfo):
        self.model, self.info = model, info

    def schedule(self, steps: int) -> Schedule:
        return schedule(steps)

    def encode_prompts(self, prompts: list[str]) -> list[str]:
        return prompts

    def stack(self, conditionings: list[Any]) -> list[Any]:
        return conditionings

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        times = schedule(STEPS)
        at = [int(np.argmin(np.abs(times.timestep - float(t)))) for t in timesteps]
        rows = [self.model.predict(x.numpy(), times.alpha[i], times.sigma[i]) for x, i in zip(latents, at, strict=True)]
        return torch.from_numpy(np.stack(rows))

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def decode(self, latents: Tensor) -> np.ndarray:
        return np.stack([self.model.image(latent.numpy()) for latent in latents])


def works(shape: tuple[int, int, int]) -> list[Segment]:
    """Samples, refinements with every setting of the background, and continuations of half of them."""
    rng = np.random.default_rng(0)
    mask, origin = rng.random(shape[1:]) < 0.5, rng.standard_normal(shape).astype(np.float32)
    made = []
    for solver, eta in (("dpm", 1.0), ("dpm", 0.0), ("ddim", 0.5)):
        sampling = Sampling("a", STEPS, 3.0, eta=eta, solver=solver)  # type: ignore[arg-type]
        seed = ("seed 1",)
        made += [Segment(5, sampling, seed, stop, noise=Fresh(1)) for stop in (0, 3, STEPS)]
        clean = State(origin, STEPS, STEPS)
        lineage = (*seed, "refine@2 0")
        made.append(Segment(5, sampling, lineage, STEPS, state=clean, renoise=2))
        for background, spatial in (("fixed", True), ("fresh", True), ("fixed", False)):
            region = Region(mask, origin, lineage, 2, background, spatial)  # type: ignore[arg-type]
            made += [Segment(5, sampling, lineage, stop, state=clean, renoise=2, region=region) for stop in (4, STEPS)]
    return made


@pytest.mark.parametrize(
    ("model", "info"),
    [(Mixture(), analytic_info(STEPS)), (Gaussian(), Gaussian().info(STEPS))],
    ids=["mixture", "gaussian"],
)
def test_the_pool_in_closed_form_does_what_the_engine_does(model: Model, info: ModelInfo) -> None:
    backbone: Any = InClosedForm(model, info)
    engine, pool = Engine(backbone, 16), AnalyticPool(info, model=model)
    asked = works(model.shape)
    for work, result in zip(asked, run(engine, *asked), strict=True):
        expected = pool.submit(work).result()
        assert result.state is not None and expected.state is not None
        assert np.allclose(result.state.latent, expected.state.latent, atol=2e-5), work
        if work.noise is None:  # a re-noised image that no trajectory made
            assert result.state.change is None and expected.state.change is None
        else:
            assert result.state.change is not None and expected.state.change is not None
            assert np.allclose(result.state.change, expected.state.change, atol=2e-5), work
        assert (
            (result.usage.nfe, result.usage.images)
            == (expected.usage.nfe, expected.usage.images)
            == (
                work.stop - work.start,
                int(work.stop == STEPS),
            )
        )
        if result.state.complete:
            continue
        # Looked at, branched and carried on.
        rest = [
            Segment(5, work.sampling, (*work.lineage, "branch@3 1"), STEPS, state=seen.state)
            for seen in (
                run(engine, Predict(result.state, work.sampling))[0],
                pool.submit(Predict(expected.state, work.sampling)).result(),
            )
            if seen.state is not None
        ]
        (one,), other = run(engine, rest[0]), pool.submit(rest[1]).result()
        assert one.state is not None and other.state is not None
        assert np.allclose(one.state.latent, other.state.latent, atol=2e-5), work
        assert one.usage.nfe == other.usage.nfe == STEPS - result.state.step - 1


def test_the_number_of_a_gaussian_survives_its_image() -> None:
    model = Gaussian(slope=2.0, curve=-1.0, offset=0.25)
    latent = np.array([[[-1.2345678]]], np.float32)
    image = model.image(latent)
    assert image.shape == (1, 4, 3) and np.array_equal(model.latent(image), latent)
    x = float(latent[0, 0, 0])
    assert model.score(image) == pytest.approx(2 * x - x**2 + 0.25)


def test_tilts_agree_with_numerical_integration() -> None:
    model = Gaussian(slope=0.9, curve=-0.3, offset=0.1)
    grid = np.linspace(-12, 12, 400_001)
    density = np.exp(-((grid - 0.4) ** 2) / (2 * 0.7)) / np.sqrt(2 * np.pi * 0.7)
    tilt = density * np.exp(2.0 * (0.9 * grid - 0.3 * grid**2 + 0.1))
    mass = np.trapezoid(tilt, grid)
    mean = np.trapezoid(tilt * grid, grid) / mass
    variance = np.trapezoid(tilt * (grid - mean) ** 2, grid) / mass
    assert model.tilted(0.4, 0.7, 2.0) == pytest.approx((mean, variance, np.log(mass)), rel=1e-6)
    assert replace(model, curve=0.0).tilted(0.4, 0.7, 2.0)[:2] == pytest.approx((0.4 + 2 * 0.9 * 0.7, 0.7))
