"""Masked refinement (LoTTS Algorithm 2, Eq. 9-10)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from lotts_search.engine.engine import Engine
from lotts_search.work.noise import draw
from lotts_search.work.requests import Floats, Region, Result, Sampling, Segment, State
from tests.tiny import run, sample, scheduler_config, tiny_backbone

SAMPLING = Sampling("a red circle", 8, 4.0)
START, INTEGRATE = 3, 2
LINEAGE = ("seed 0", f"refine@{START} 1")
MASK = np.random.default_rng(1).random((8, 8)) < 0.5


@pytest.fixture(scope="module")
def parent() -> State:
    (result,) = run(Engine(tiny_backbone(), 2), sample(0, SAMPLING))
    assert result.state is not None
    return result.state


def refine(parent: State, stop: int, *, start: int = START, mask: Any = MASK, **region: Any) -> Segment:
    where = Region(mask, parent.latent, LINEAGE, **({"integrate": INTEGRATE} | region))
    return Segment(1, SAMPLING, LINEAGE, stop, state=parent, renoise=start, region=where)


def latents_by_step(parent: State, **settings: Any) -> list[Floats]:
    """The latent of one refinement at each step from its start to T."""
    start = settings.get("start", START)
    works = [refine(parent, stop, **settings) for stop in range(start, SAMPLING.steps + 1)]
    states = [result.state for result in run(Engine(tiny_backbone(), 2), *works)]
    return [state.latent for state in states if state is not None]


def scales(step: int) -> tuple[np.float32, np.float32]:
    schedule = tiny_backbone().schedule(SAMPLING.steps)
    return np.float32(schedule.alpha[step]), np.float32(schedule.sigma[step])


@pytest.mark.parametrize("background", ["fixed", "fresh"])
def test_until_integration_the_background_is_exactly_the_noised_parent(parent: State, background: str) -> None:
    latents = latents_by_step(parent, background=background)
    for step, latent in enumerate(latents, START):
        alpha, sigma = scales(step)
        noise = draw(1, LINEAGE, "outside", step if background == "fresh" else 0, (4, 8, 8))
        exact = (latent == alpha * parent.latent + sigma * noise).all(axis=0)
        if step <= SAMPLING.steps - INTEGRATE:
            assert exact[~MASK].all()
            assert not exact[MASK].any()
        else:
            assert not exact[~MASK].all()
    alpha, sigma = scales(START)
    inside = alpha * parent.latent + sigma * draw(1, LINEAGE, "inside", START, (4, 8, 8))
    assert np.array_equal(latents[0][:, MASK], inside[:, MASK])


def test_without_integration_the_background_of_the_result_is_the_parent(parent: State) -> None:
    final = latents_by_step(parent, integrate=0)[-1]
    assert np.array_equal(final[:, ~MASK], parent.latent[:, ~MASK])
    assert not np.array_equal(final[:, MASK], parent.latent[:, MASK])


def test_without_spatial_consistency_the_background_stays_clean(parent: State) -> None:
    latents = latents_by_step(parent, spatial=False)
    for step, latent in enumerate(latents, START):
        if step <= SAMPLING.steps - INTEGRATE:
            assert np.array_equal(latent[:, ~MASK], parent.latent[:, ~MASK])


def test_without_temporal_consistency_it_starts_from_pure_noise_level(parent: State) -> None:
    first = latents_by_step(parent, start=0)[0]
    alpha, sigma = scales(0)
    inside = alpha * parent.latent + sigma * draw(1, LINEAGE, "inside", 0, (4, 8, 8))
    assert np.array_equal(first[:, MASK], inside[:, MASK])


def by_hand(parent: State, lineage: tuple[str, ...], start: int) -> Floats:
    """Image-to-image with diffusers' scheduler, written out."""
    backbone = tiny_backbone()
    scheduler = DPMSolverMultistepScheduler(
        **scheduler_config(), algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(SAMPLING.steps)
    scheduler.set_begin_index(start)
    prompt, empty = backbone.encode_prompts([SAMPLING.prompt, ""])
    noise = torch.from_numpy(draw(1, lineage, "inside", start, (4, 8, 8)))[None]
    clean = torch.from_numpy(parent.latent)[None]
    latents = scheduler.add_noise(clean, noise, scheduler.timesteps[start : start + 1])
    with torch.no_grad():
        for step in range(start, SAMPLING.steps):
            time = scheduler.timesteps[step]
            with_prompt = backbone.unet(latents, time, prompt[None]).sample
            without = backbone.unet(latents, time, empty[None]).sample
            output = without + SAMPLING.guidance * (with_prompt - without)
            noise = torch.from_numpy(draw(1, lineage, "step", step, (4, 8, 8)))[None]
            latents = scheduler.step(output, time, latents, variance_noise=noise).prev_sample
    result: Floats = latents[0].numpy()
    return result


@pytest.mark.parametrize("integrate", [0, INTEGRATE, 99])
def test_a_full_mask_is_plain_denoising_from_the_start_step(parent: State, integrate: int) -> None:
    want = by_hand(parent, LINEAGE, START)
    full = refine(parent, SAMPLING.steps, mask=np.ones((8, 8), np.bool_), integrate=integrate)
    plain = replace(full, region=None)
    for result in run(Engine(tiny_backbone(), 4), full, plain):
        assert result.state is not None
        assert np.abs(result.state.latent - want).max() <= 1e-4 * max(1, float(np.abs(want).max()))


def test_a_masked_refinement_equals_the_formulas_of_the_paper_written_out(parent: State) -> None:
    """x̃ ← M⊙step(x̃) + (1−M)⊙(a·x0 + s·ε2) around diffusers' scheduler."""
    backbone = tiny_backbone()
    scheduler = DPMSolverMultistepScheduler(
        **scheduler_config(), algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(SAMPLING.steps)
    scheduler.set_begin_index(START)
    prompt, empty = backbone.encode_prompts([SAMPLING.prompt, ""])
    clean, mask = torch.from_numpy(parent.latent)[None], torch.from_numpy(MASK)
    outside = torch.from_numpy(draw(1, LINEAGE, "outside", 0, (4, 8, 8)))[None]
    inside = torch.from_numpy(draw(1, LINEAGE, "inside", START, (4, 8, 8)))[None]

    def noised(step: int, noise: torch.Tensor) -> torch.Tensor:
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[step])
        return alpha * clean + sigma * noise

    latents = torch.where(mask, noised(START, inside), noised(START, outside))
    with torch.no_grad():
        for step in range(START, SAMPLING.steps):
            time = scheduler.timesteps[step]
            with_prompt = backbone.unet(latents, time, prompt[None]).sample
            without = backbone.unet(latents, time, empty[None]).sample
            output = without + SAMPLING.guidance * (with_prompt - without)
            noise = torch.from_numpy(draw(1, LINEAGE, "step", step, (4, 8, 8)))[None]
            latents = scheduler.step(output, time, latents, variance_noise=noise).prev_sample
            if step < SAMPLING.steps - INTEGRATE:
                latents = torch.where(mask, latents, noised(step + 1, outside))
    want = latents[0].numpy()
    got = latents_by_step(parent)[-1]
    assert np.abs(got - want).max() <= 1e-4 * max(1, float(np.abs(want).max()))


@pytest.mark.parametrize("background", ["fixed", "fresh"])
@pytest.mark.parametrize("stop", [START, START + 2, SAMPLING.steps - 1])
def test_a_refinement_can_be_stopped_and_continued_bitwise(parent: State, background: str, stop: int) -> None:
    engine = Engine(tiny_backbone(), 4)
    (whole,) = run(engine, refine(parent, SAMPLING.steps, background=background))
    (part,) = run(engine, refine(parent, stop, background=background))
    assert part.state is not None and part.state.region is not None
    (rest,) = run(engine, Segment(1, SAMPLING, LINEAGE, SAMPLING.steps, state=part.state))
    assert rest.state is not None and whole.state is not None
    assert np.array_equal(rest.state.latent, whole.state.latent)
    assert rest.state.region is None


def test_a_refinement_forgets_the_parents_history(parent: State) -> None:
    """Re-noising starts at first order: a history in the given state changes nothing."""
    other = replace(parent, previous=np.full((4, 8, 8), 9.0, np.float32), predicted=np.zeros((4, 8, 8), np.float32))
    results: list[Result] = run(Engine(tiny_backbone(), 4), refine(parent, 8), refine(other, 8))
    assert np.array_equal(results[0].image, results[1].image)  # type: ignore[arg-type]
    assert results[0].usage.nfe == results[1].usage.nfe == 8 - START
