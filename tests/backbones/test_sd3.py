from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from lotts_search.backbones.sd3 import StableDiffusion3
from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput, Failure
from lotts_search.registry import load_backbone
from lotts_search.work.noise import draw
from lotts_search.work.requests import Sampling
from tests.reference import pipeline_run
from tests.tiny import run, sample
from tests.tiny_sd3 import sd3_backbone_of, tiny_sd3_pipeline

STEPS = 6
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-sd3"
    tiny_sd3_pipeline().save_pretrained(path, safe_serialization=True)
    return path


def start(seed: int) -> Tensor:
    return torch.from_numpy(draw(1, (f"seed {seed}",), "start", 0, SHAPE))[None]


def close(got: Any, want: Any) -> bool:
    return bool(np.abs(got - want).max() <= 1e-4 * max(1, np.abs(want).max()))


@pytest.mark.parametrize(
    ("t5", "newer", "scheduler"),
    [(True, False, {}), (False, True, {}), (True, True, {"use_dynamic_shifting": True, "shift": 1.0})],
)
def test_a_sample_by_ddim_equals_the_pipeline(t5: bool, newer: bool, scheduler: dict[str, Any]) -> None:
    pipeline = tiny_sd3_pipeline(t5=t5, newer=newer, **scheduler)
    settings = [
        Sampling("a red circle", STEPS, 1.0, eta=0.0, solver="ddim"),
        Sampling("a red circle", STEPS, 5.0, eta=0.0, solver="ddim"),
        Sampling("a blue star on the left", STEPS, 5.0, negative="bad quality", eta=0.0, solver="ddim"),
    ]
    results = run(Engine(sd3_backbone_of(pipeline), 8), *(sample(seed, s) for seed, s in enumerate(settings)))
    options: dict[str, Any] = {"height": 32, "width": 32}
    for seed, (result, sampling) in enumerate(zip(results, settings, strict=True)):
        options |= {"latents": start(seed), "output_type": "latent"}
        want = pipeline_run(pipeline, sampling, (), SHAPE, pipeline.scheduler, **options)[0].numpy()
        assert result.state is not None and close(result.state.latent, want)
    options |= {"latents": start(1), "output_type": "np"}
    image = pipeline_run(pipeline, settings[1], (), SHAPE, pipeline.scheduler, **options)[0]
    assert results[1].image is not None
    assert np.abs(results[1].image - image * 255).max() <= 0.51 + 0.05


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_a_sample_by_the_sde_solver_equals_a_loop_around_diffusers_solver(eta: float) -> None:
    """The scheduler gets the exact levels; by itself it would choose others and truncate its timesteps."""
    pipeline = tiny_sd3_pipeline()
    backbone = sd3_backbone_of(pipeline)
    sampling = Sampling("a red circle", STEPS, 4.0, eta=eta)
    (result,) = run(Engine(backbone, 2), sample(3, sampling))
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(STEPS)
    pipeline.scheduler.set_timesteps(STEPS)
    scheduler.sigmas = pipeline.scheduler.sigmas
    scheduler.set_begin_index(0)
    prompt, empty = backbone.encode_prompts(["a red circle", ""])
    latents = start(3)
    with torch.no_grad():
        for step, time in enumerate(pipeline.scheduler.timesteps):
            outputs = [
                pipeline.transformer(latents, text.text[None], text.pooled[None], time[None]).sample
                for text in (prompt, empty)
            ]
            output = outputs[1] + 4.0 * (outputs[0] - outputs[1])
            noise = torch.from_numpy(draw(1, ("seed 3",), "step", step, SHAPE))[None]
            if step == 0:
                # At pure noise the scheduler's logarithm of alpha is infinite, so compute the limit of the step here.
                x0, sigma = latents - output, scheduler.sigmas[1]
                carried = noise if eta else latents
                scheduler.model_outputs[-1] = x0
                latents = (1 - sigma) * x0 + sigma * carried
                scheduler.lower_order_nums, scheduler._step_index = 0, 1
                continue
            latents = scheduler.step(output, time, latents, variance_noise=noise).prev_sample
    assert result.state is not None and close(result.state.latent, latents[0].numpy())


def test_rows_of_a_call_may_differ_in_prompt_and_timestep() -> None:
    backbone = sd3_backbone_of(tiny_sd3_pipeline())
    latents = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([3.0, 500.0, 1000.0])
    known = backbone.encode_prompts(["a red circle", "", "a blue star"])
    together = backbone.predict(latents, times, backbone.stack(known))
    for row in range(3):
        alone = backbone.predict(latents[row : row + 1], times[row : row + 1], backbone.stack(known[row : row + 1]))
        assert torch.allclose(together[row], alone[0], atol=1e-5)
    assert (together[0] - together[2]).abs().max() > 1e-2


def test_a_saved_folder_gives_the_same_model_with_and_without_t5(folder: Path) -> None:
    loaded = load_backbone(str(folder), device="cpu")
    assert isinstance(loaded, StableDiffusion3)
    info = loaded.info
    assert (info.latent, info.image, info.family, info.patch) == (SHAPE, (32, 32), "stable-diffusion-3", 2)
    assert info.scheduler == "FlowMatchEulerDiscreteScheduler"
    work = sample(3, Sampling("a red circle", 3, 2.0))
    (a,), (b,) = run(Engine(loaded, 2), work), run(Engine(sd3_backbone_of(tiny_sd3_pipeline()), 2), work)
    assert a.image is not None and np.array_equal(a.image, b.image)
    small = load_backbone(str(folder), device="cpu", t5=False)
    (got,) = small.encode_prompts(["a star"])
    (full,) = loaded.encode_prompts(["a star"])
    assert got.text.shape == full.text.shape and bool((got.text[16:] == 0).all())
    assert torch.equal(got.text[:16], full.text[:16]) and torch.equal(got.pooled, full.pooled)


def test_wrong_sizes_and_broken_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(folder), device="cpu", size=(48, 32))
    assert backbone.info.latent == (4, 12, 8)
    (result,) = run(Engine(backbone, 2), sample(0, Sampling("a star", 2, 2.0)))
    assert result.image is not None and result.image.shape == (48, 32, 3)
    with pytest.raises(BadInput, match="multiples of 8"):
        load_backbone(str(folder), device="cpu", size=(44, 32))
    with pytest.raises(BadInput, match="at most 96 pixels per side, got 104x32"):
        load_backbone(str(folder), device="cpu", size=(104, 32))
    tiny_sd3_pipeline().save_pretrained(tmp_path / "broken", safe_serialization=True)
    (tmp_path / "broken" / "text_encoder_3" / "model.safetensors").unlink()
    with pytest.raises(Failure, match="text_encoder_3"):
        load_backbone(str(tmp_path / "broken"), device="cpu")
    assert load_backbone(str(tmp_path / "broken"), device="cpu", t5=False).info.family == "stable-diffusion-3"
