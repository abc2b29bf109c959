from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FirstBlockCacheConfig, FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from lotts_search.api import search
from lotts_search.backbones.flow import FlowTime
from lotts_search.backbones.flux import Flux, image_ids, pack, unpack
from lotts_search.bench.families import Brightness
from lotts_search.engine.engine import Engine
from lotts_search.engine.local_pool import LocalPool
from lotts_search.engine.segments import background_noise
from lotts_search.engine.solver import coefficients, step
from lotts_search.errors import BadInput, Failure
from lotts_search.localization.locate import locate
from lotts_search.registry import load_backbone
from lotts_search.work.masks import ConceptMask
from lotts_search.work.noise import draw
from lotts_search.work.requests import Encode, Floats, Locate, Region, Result, Sampling, Segment
from tests.tiny import run, sample, tiny_backbone
from tests.tiny_flux import flux_of, shared_flux, tiny_flux

SHAPE, GRID, STEPS = (4, 8, 8), (4, 4), 5
PROMPT = "a red circle on the left"


def solver(pipeline: FluxPipeline, eta: float, **config: Any) -> DPMSolverMultistepScheduler:
    """Return diffusers' multistep solver for flows, configured as its documentation recommends."""
    return DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        **config,
    )


def step_with_noise(scheduler: Any, seed: int, eta: float) -> Any:
    """Return the scheduler's step with the noise of ``sample(seed, …)``, because pipelines pass no noise."""
    plain, lineage = scheduler.step, (f"seed {seed}",)

    def noisy(output: Tensor, timestep: Tensor, latents: Tensor, **rest: Any) -> Any:
        index = scheduler.step_index if scheduler.step_index is not None else scheduler.begin_index or 0
        noise = torch.from_numpy(draw(1, lineage, "step", index, SHAPE))[None] * (eta > 0)
        return plain(output, timestep, latents, variance_noise=pack(noise), **rest)

    return noisy


def start(seed: int) -> Tensor:
    return pack(torch.from_numpy(draw(1, (f"seed {seed}",), "start", 0, SHAPE))[None])


def through_pipeline(pipeline: FluxPipeline, seed: int, sampling: Sampling, scheduler: Any, **options: Any) -> Any:
    """Run FluxPipeline with that scheduler on the start and step noise of ``sample(seed, sampling)``."""
    before, pipeline.scheduler = pipeline.scheduler, scheduler
    made = pipeline(
        sampling.prompt,
        height=16,
        width=16,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        latents=start(seed),
        max_sequence_length=24,
        **{"output_type": "latent"} | options,
    ).images
    pipeline.scheduler = before
    return made


def by_hand(backbone: Flux, scheduler: Any, sampling: Sampling, latents: Tensor, step: Any, first: int = 0) -> Floats:
    """Run a denoising loop around a scheduler from its step ``first``, with the timesteps that match its sigmas."""
    (text,) = backbone.encode_prompts([sampling.prompt])
    scheduler.set_begin_index(first)
    with torch.no_grad():
        for index in range(first, sampling.steps):
            output = backbone.transformer(
                hidden_states=latents,
                timestep=scheduler.sigmas[index].reshape(1),
                encoder_hidden_states=text.states[None],
                pooled_projections=text.pooled[None],
                txt_ids=torch.zeros(24, 3),
                img_ids=image_ids(GRID),
            ).sample
            latents = step(output, scheduler.timesteps[index], latents).prev_sample
    made: Floats = unpack(latents, GRID)[0].numpy()
    return made


def close(result: Result, want: Floats) -> bool:
    assert result.state is not None
    return bool(np.abs(result.state.latent - want).max() <= 1e-4 * max(1, np.abs(want).max()))


def test_packing_equals_that_of_the_pipeline() -> None:
    latents = torch.randn(3, 4, 8, 12)
    tokens = FluxPipeline._pack_latents(latents, 3, 4, 8, 12)
    assert torch.equal(pack(latents), tokens)
    assert torch.equal(unpack(tokens, (4, 6)), latents)
    assert torch.equal(image_ids((4, 6)), FluxPipeline._prepare_latent_image_ids(1, 4, 6, "cpu", torch.float32))


@pytest.mark.parametrize(("steps", "eta"), [(1, 1.0), (STEPS, 0.0), (16, 1.0)])
def test_compat_samples_equal_the_pipeline(steps: int, eta: float) -> None:
    # Dynamic shifting, because FluxPipeline always passes mu, and without it this scheduler refuses mu.
    pipeline = tiny_flux(use_dynamic_shifting=True)
    sampling = Sampling(PROMPT, steps, 1.0, eta=eta)
    scheduler = solver(pipeline, eta)
    scheduler.step = step_with_noise(scheduler, 0, eta)
    want = unpack(through_pipeline(pipeline, 0, sampling, scheduler), GRID)[0].numpy()
    (result,) = run(Engine(flux_of(pipeline, compat=True), 4), sample(0, sampling))
    assert close(result, want)
    (exact,) = run(Engine(flux_of(pipeline), 4), sample(0, sampling))
    assert steps == 1 or not close(exact, want)


@pytest.mark.parametrize("shifting", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_samples_equal_the_pipeline_with_its_usual_scheduler(shifting: dict[str, Any]) -> None:
    """On a flow, DDIM without noise is an Euler step."""
    pipeline = tiny_flux(**shifting)
    sampling = Sampling(PROMPT, STEPS, 1.0, eta=0.0, solver="ddim")
    want = unpack(through_pipeline(pipeline, 0, sampling, pipeline.scheduler), GRID)[0].numpy()
    (result,) = run(Engine(flux_of(pipeline), 4), sample(0, sampling))
    assert close(result, want)


@pytest.mark.parametrize(("steps", "eta"), [(1, 1.0), (STEPS, 0.0), (16, 1.0)])
def test_exact_samples_equal_a_loop_around_the_scheduler(steps: int, eta: float) -> None:
    pipeline = tiny_flux(shift=3.0)
    backbone, sampling = flux_of(pipeline), Sampling(PROMPT, steps, 1.0, eta=eta)
    scheduler = solver(pipeline, eta)
    scheduler.set_timesteps(steps)
    even = np.linspace(1, 1 / steps, steps)
    scheduler.sigmas = torch.tensor([*(3 * even / (1 + 2 * even)), 0.0], dtype=torch.float32)
    want = by_hand(backbone, scheduler, sampling, start(0), step_with_noise(scheduler, 0, eta))
    (result,) = run(Engine(backbone, 4), sample(0, sampling))
    assert close(result, want)


def test_a_solver_config_keeps_its_levels_and_gets_exact_timesteps() -> None:
    pipeline = tiny_flux(shift=3.0)
    config = dict(solver(pipeline, 1.0, flow_shift=2.0).config)
    exact, truncated = FlowTime(config, 16).schedule(7), FlowTime(config, 16, compat=True).schedule(7)
    assert np.array_equal(exact.sigma, truncated.sigma) and exact.sigma[0] == pytest.approx(0.9995, abs=1e-4)
    assert np.array_equal(exact.timestep, exact.sigma[:-1] * 1000)
    assert np.array_equal(np.trunc(exact.timestep), truncated.timestep)


@pytest.mark.parametrize("shifting", [{"shift": 1.0}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_levels_equal_those_of_the_pipeline(shifting: dict[str, Any]) -> None:
    pipeline = tiny_flux(**shifting)
    pipeline(PROMPT, height=16, width=16, num_inference_steps=7, max_sequence_length=24, output_type="latent")
    schedule = flux_of(pipeline).schedule(7)
    assert np.array_equal(schedule.sigma, pipeline.scheduler.sigmas.double().numpy())
    assert np.allclose(schedule.timestep, pipeline.scheduler.timesteps.numpy(), rtol=1e-6)
    assert np.array_equal(schedule.alpha, 1 - schedule.sigma)


def test_other_configs_and_impossible_steps_are_refused() -> None:
    with pytest.raises(BadInput, match="PNDMScheduler"):
        FlowTime({"_class_name": "PNDMScheduler"}, 16)
    time = FlowTime(dict(tiny_flux().scheduler.config), 16)
    for steps in (0, -1, 1000):
        with pytest.raises(BadInput, match="number of steps"):
            time.schedule(steps)
    assert time.train_level(250) == (0.75, 0.25) and time.train_level(0) == (1, 0)
    with pytest.raises(BadInput, match=r"0\.\.999"):
        time.train_level(1000)


def test_the_first_step_from_pure_noise_is_the_limit_of_steps_from_nearly_pure_noise() -> None:
    config = dict(tiny_flux().scheduler.config)
    schedule = FlowTime(config, 16).schedule(6)
    near = FlowTime(config, 16).schedule(6)
    near.sigma[0], near.alpha[0] = 1 - 1e-13, 1e-13
    for eta in (0.0, 0.5, 1.0, 2.0):
        table, limit = coefficients(schedule, eta), coefficients(near, eta)
        assert np.isfinite(table).all()
        # λ = ln(a/s) tends to −∞ slowly: at a = 1e-13 the history still has a weight of a few percent in the second step.
        rough = np.abs(table - limit)
        assert rough[0].max() < 1e-6 and rough[1, 0].max() < 1e-6 and rough[1, 2:].max() == 0
        assert np.array_equal(table[1, 1], table[0, 1]) and rough[1, 1].max() < 0.05


def test_terminal_moments_on_a_gaussian_follow_the_discrete_recursion_and_approach_the_target() -> None:
    """Data N(m, v): the exact denoiser is affine in the latent, so mean and variance follow a linear recursion."""
    mean, variance, count = 0.7, 0.3**2, 200_000
    generator = torch.Generator().manual_seed(0)
    misses = []
    for steps in (6, 24, 96):
        schedule = FlowTime(dict(tiny_flux().scheduler.config), 16).schedule(steps)
        table = coefficients(schedule, 1.0)
        alpha, sigma = schedule.alpha, schedule.sigma
        gain = alpha[:-1] * variance / (alpha[:-1] ** 2 * variance + sigma[:-1] ** 2)
        offset = mean * (1 - gain * alpha[:-1])
        # The recursion on (x, D_previous), whose two entries and a constant are jointly Gaussian.
        centre, spread = np.zeros(2), np.diag([1.0, 0.0])
        x, previous = torch.randn(count, 1, 1, 1, generator=generator), torch.zeros(count, 1, 1, 1)
        for i in range(steps):
            latent, now, before, noise = table[min(i, 1), i]
            move = np.array([[latent + now * gain[i], before], [gain[i], 0.0]])
            centre = move @ centre + np.array([now * offset[i], offset[i]])
            spread = move @ spread @ move.T + np.diag([noise**2, 0.0])
            x0 = gain[i] * x + offset[i]
            rows = torch.from_numpy(table[min(i, 1), i][None])
            x, previous = step(x0, previous, x, rows, torch.randn(x.shape, generator=generator)), x0
        error = math.sqrt(spread[0, 0] / count)
        assert float(x.mean()) == pytest.approx(centre[0], abs=5 * error)
        assert float(x.var()) == pytest.approx(spread[0, 0], rel=5 * math.sqrt(2 / count))
        misses.append((abs(centre[0] - mean), abs(spread[0, 0] / variance - 1)))
    assert misses[0][1] > misses[1][1] > misses[2][1] and misses[2][1] < 0.05
    assert max(miss[0] for miss in misses) < 0.01


def test_a_refinement_with_a_whole_mask_is_a_hand_written_loop_from_t0() -> None:
    pipeline = tiny_flux()
    backbone, sampling = flux_of(pipeline), Sampling(PROMPT, STEPS, 1.0)
    (parent,) = run(Engine(backbone, 4), sample(0, sampling))
    assert parent.state is not None
    lineage = ("seed 0", "refine@2 7")
    region = Region(np.ones(SHAPE[1:], dtype=np.bool_), parent.state.latent, lineage, 1)
    work = Segment(1, sampling, lineage, STEPS, state=parent.state, renoise=2, region=region)
    (result,) = run(Engine(backbone, 4), work)
    scheduler = solver(pipeline, 1.0)
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    noise = torch.from_numpy(draw(1, lineage, "inside", 2, SHAPE))
    latents = pack((0.4 * torch.from_numpy(parent.state.latent) + 0.6 * noise)[None])
    plain = scheduler.step

    def noisy(output: Tensor, timestep: Tensor, latents: Tensor) -> Any:
        index = 2 if scheduler.step_index is None else scheduler.step_index
        fresh = torch.from_numpy(draw(1, lineage, "step", index, SHAPE))[None]
        return plain(output, timestep, latents, variance_noise=pack(fresh))

    assert close(result, by_hand(backbone, scheduler, sampling, latents, noisy, 2))


def test_outside_the_mask_the_parents_latent_is_kept_until_the_integration_steps() -> None:
    backbone, sampling = shared_flux(), Sampling(PROMPT, STEPS, 1.0)
    (parent,) = run(Engine(backbone, 4), sample(0, sampling))
    assert parent.state is not None
    mask = np.zeros(SHAPE[1:], dtype=np.bool_)
    mask[:4] = True
    region = Region(mask, parent.state.latent, ("seed 0", "refine@1 7"), 1)
    work = Segment(1, sampling, region.lineage, 4, state=parent.state, renoise=1, region=region)
    (result,) = run(Engine(backbone, 4), work)
    schedule = backbone.schedule(STEPS)
    background = background_noise(1, region, 4)
    want = np.float32(schedule.alpha[4]) * parent.state.latent + np.float32(schedule.sigma[4]) * background
    assert result.state is not None
    assert np.allclose(result.state.latent[:, ~mask], want[:, ~mask], atol=1e-6)
    assert np.abs(result.state.latent - want)[:, mask].max() > 0.05


def test_a_step_cache_of_diffusers_is_refused_until_it_is_disabled() -> None:
    flux = flux_of(tiny_flux(blocks=2))
    flux.transformer.enable_cache(FirstBlockCacheConfig())
    work = sample(0, Sampling("a red circle", 2, 1.0))
    with pytest.raises(BadInput, match=r"has a cache of diffusers \(enable_cache\).*disable_cache"):
        run(Engine(flux, 2), work)
    flux.transformer.disable_cache()
    assert run(Engine(flux, 2), work)[0].state is not None


def test_an_embedded_weight_is_set_per_row_and_needs_no_second_row() -> None:
    pipeline = tiny_flux(guidance=True, use_dynamic_shifting=True)
    backbone = flux_of(pipeline, compat=True)
    assert backbone.info.embedded_guidance and backbone.info.defaults.guidance == 3.5
    settings = [Sampling(PROMPT, STEPS, weight, embedded=True) for weight in (2.0, 6.0)]
    assert not settings[0].guided
    results = run(Engine(backbone, 4), *(sample(seed, s) for seed, s in enumerate(settings)))
    for seed, (result, sampling) in enumerate(zip(results, settings, strict=True)):
        scheduler = solver(pipeline, 1.0)
        scheduler.step = step_with_noise(scheduler, seed, 1.0)
        want = unpack(through_pipeline(pipeline, seed, sampling, scheduler), GRID)[0].numpy()
        assert close(result, want)
        assert (result.usage.rows, result.usage.nfe) == (STEPS, STEPS)
    (other,) = run(Engine(backbone, 4), sample(0, settings[1]))
    assert other.state is not None and results[0].state is not None
    assert np.abs(other.state.latent - results[0].state.latent).max() > 1e-3


def test_true_guidance_equals_that_of_the_pipeline() -> None:
    pipeline = tiny_flux(use_dynamic_shifting=True)
    sampling = Sampling(PROMPT, STEPS, 3.0, negative="bad quality")
    scheduler = solver(pipeline, 1.0)
    scheduler.step = step_with_noise(scheduler, 0, 1.0)
    made = through_pipeline(
        pipeline, 0, sampling, scheduler, true_cfg_scale=3.0, negative_prompt="bad quality", output_type="latent"
    )
    (result,) = run(Engine(flux_of(pipeline, compat=True), 4), sample(0, sampling))
    assert close(result, unpack(made, GRID)[0].numpy()) and result.usage.rows == 2 * STEPS


def test_images_are_decoded_and_encoded_as_by_the_pipeline() -> None:
    pipeline = tiny_flux(use_dynamic_shifting=True)
    sampling = Sampling(PROMPT, STEPS, 1.0)
    scheduler = solver(pipeline, 1.0)
    scheduler.step = step_with_noise(scheduler, 0, 1.0)
    image = through_pipeline(pipeline, 0, sampling, scheduler, output_type="np")[0]
    engine = Engine(flux_of(pipeline, compat=True), 4)
    (result,) = run(engine, sample(0, sampling))
    assert result.image is not None and np.abs(result.image - image * 255).max() <= 0.51 + 0.05
    given = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (encoded,) = run(engine, Encode(given, 9))
    with torch.no_grad():
        posterior = pipeline.vae.encode(torch.from_numpy(given).permute(2, 0, 1)[None] / 127.5 - 1).latent_dist
    assert encoded.state is not None
    assert np.allclose(encoded.state.latent, (posterior.mean[0].numpy() - 0.1) * 0.5, atol=1e-5)


def test_prompts_are_encoded_as_by_the_pipeline() -> None:
    pipeline = tiny_flux()
    backbone = flux_of(pipeline)
    prompts = [PROMPT, "a blue star and " * 9, ""]
    states, pooled, _ = pipeline.encode_prompt(prompts, None, max_sequence_length=24)
    for row, text in enumerate(backbone.encode_prompts(prompts)):
        assert torch.allclose(text.states, states[row], atol=1e-6)
        assert torch.allclose(text.pooled, pooled[row], atol=1e-6)
    assert flux_of(pipeline, words=9).encode_prompts([PROMPT])[0].states.shape == (9, 24)


@pytest.mark.parametrize("strategy", ["lotts", "best-of-n", "resampling"])
def test_the_same_strategies_run_on_every_family(strategy: str) -> None:
    for backbone in (tiny_backbone(), shared_flux(), flux_of(tiny_flux(guidance=True))):
        with LocalPool(backbone, {"brightness": Brightness()}, batch=4, threads=1) as pool:
            result = search(PROMPT, pool=pool, strategy=strategy, verifier="brightness", steps=4, images=None, nfe=24)
        assert result.status == "done" and result.image is not None
        if strategy == "lotts":
            kinds = Counter(trial.kind for trial in result.trials)
            assert kinds["refine"] >= 2 and kinds["localize"] >= 1
            assert all(trial.status == "done" for trial in result.trials)
            assert result.ledger.nfe <= 24
            if backbone.info.family == "flux":
                located = next(iter(result.located.values()))
                assert located.heat.shape == GRID and located.mask.sum() == 32


def test_a_folder_gives_the_same_model(tmp_path: Path) -> None:
    tiny_flux().save_pretrained(tmp_path / "flux", safe_serialization=True)
    loaded = load_backbone(str(tmp_path / "flux"), device="cpu")
    assert isinstance(loaded, Flux)
    assert (loaded.info.latent, loaded.info.image, loaded.info.family) == (SHAPE, (16, 16), "flux")
    assert loaded.info.scheduler == "FlowMatchEulerDiscreteScheduler"
    direct, work = shared_flux(), sample(3, Sampling("a red circle", 3, 1.0))
    (a,), (b,) = run(Engine(loaded, 2), work), run(Engine(direct, 2), work)
    assert a.image is not None and np.array_equal(a.image, b.image)
    # Offloaded weights give the same image and the same maps.
    assert a.state is not None
    found = Locate(0, (), a.state, work.sampling, ConceptMask())
    for how in ("model", "sequential"):
        away = load_backbone(str(tmp_path / "flux"), device="cpu", offload=how, vae_slicing=True)
        c, d = run(Engine(away, 2), work, found)
        assert c.image is not None and np.array_equal(a.image, c.image)
        assert d.located is not None and np.array_equal(d.located.heat, locate(direct, found).heat)
    with pytest.raises(BadInput, match="multiples of 4 pixels"):
        load_backbone(str(tmp_path / "flux"), device="cpu", size=(18, 16))
    wide = load_backbone(str(tmp_path / "flux"), device="cpu", size=(16, 24), dtype="bfloat16", words=9, compat=True)
    assert wide.info.latent == (4, 8, 12)
    (e,) = run(Engine(wide, 2), work)
    assert e.image is not None and e.image.shape == (16, 24, 3)
    (tmp_path / "flux" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(Failure, match="transformer"):
        load_backbone(str(tmp_path / "flux"), device="cpu")


def test_merged_adapters_equal_those_of_the_pipeline(tmp_path: Path) -> None:
    pipeline = tiny_flux()
    pipeline.save_pretrained(tmp_path / "flux", safe_serialization=True)
    pipeline.transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v", "add_k_proj"]))
    layers = get_peft_model_state_dict(pipeline.transformer)
    generator = torch.Generator().manual_seed(1)
    layers = {name: torch.randn(value.shape, generator=generator) * 0.3 for name, value in layers.items()}
    pipeline.save_lora_weights(tmp_path / "style", transformer_lora_layers=layers, safe_serialization=True)
    pipeline.transformer.delete_adapters("default")
    pipeline.load_lora_weights(tmp_path / "style", adapter_name="style")
    pipeline.set_adapters("style", 0.5)
    plain, backbone = (
        load_backbone(str(tmp_path / "flux"), device="cpu", lora=lora) for lora in (None, [f"{tmp_path / 'style'}:0.5"])
    )
    sampling = Sampling(PROMPT, 3, 1.0, eta=0.0, solver="ddim")
    want = unpack(through_pipeline(pipeline, 0, sampling, pipeline.scheduler), GRID)[0].numpy()
    (made,), (before,) = run(Engine(backbone, 2), sample(0, sampling)), run(Engine(plain, 2), sample(0, sampling))
    assert close(made, want) and not close(before, want)
