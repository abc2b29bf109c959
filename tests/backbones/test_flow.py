"""Noise levels of flow-matching models, compared with samples of their own scheduler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from lotts_search.backbones.flow import FlowTime
from lotts_search.engine.solver import coefficients
from lotts_search.errors import BadInput

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
DYNAMIC = EULER | {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}
CONFIGS: dict[str, dict[str, Any]] = {
    "FLUX.1-schnell": EULER | {"shift": 1.0, "use_dynamic_shifting": False, "base_image_seq_len": 256},
    "FLUX.1-dev": DYNAMIC | {"shift": 3.0, "max_image_seq_len": 4096},
    "SD3": EULER | {"shift": 3.0},
    "SD3.5 dynamic": DYNAMIC | {"shift": 3.0, "max_image_seq_len": 4096, "time_shift_type": "linear"},
    "shift to a last level": DYNAMIC | {"shift_terminal": 0.1},
    "Karras": EULER | {"shift": 3.0, "use_karras_sigmas": True},
    "exponential": EULER | {"shift": 3.0, "use_exponential_sigmas": True},
}
TOKENS = 1024


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("spaced", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_a_sample_equals_that_of_the_scheduler(config: dict[str, Any], spaced: bool, steps: int) -> None:
    if steps == 1 and "shift_terminal" in config:  # one level, that of pure noise, cannot be the last one as well
        with pytest.raises(BadInput, match="number of steps"):
            FlowTime(config, TOKENS, spaced=spaced).schedule(steps)
        return
    schedule = FlowTime(config, TOKENS, spaced=spaced).schedule(steps)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    # The exponent as FluxPipeline and StableDiffusion3Pipeline compute it, linear in the number of tokens.
    slope = (1.15 - 0.5) / (config.get("max_image_seq_len", 4096) - 256)
    mu = 0.5 + slope * (TOKENS - 256) if config.get("use_dynamic_shifting") else None
    scheduler.set_timesteps(steps, sigmas=np.linspace(1, 1 / steps, steps) if spaced else None, mu=mu)
    noise, bias = np.random.default_rng(steps).standard_normal((2, 1, 4, 8, 8))

    def network(latents: Any, timestep: Any) -> Any:
        return 0.7 * np.asarray(latents) + np.cos(float(timestep) / 90 + bias)

    theirs = torch.from_numpy(noise)
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(torch.from_numpy(network(theirs, timestep)), timestep, theirs).prev_sample.double()
    rows, ours = coefficients(schedule, 0.0, "ddim")[0], noise
    for index, timestep in enumerate(schedule.timestep):
        x0 = ours - schedule.sigma[index] * network(ours, timestep)
        ours = rows[index, 0] * ours + rows[index, 1] * x0
    assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * np.abs(theirs.numpy()).max()


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_compat_levels_with_both_kinds_of_dynamic_shift(kind: str) -> None:
    config = DYNAMIC | {"time_shift_type": kind, "max_image_seq_len": 4096}
    schedule = FlowTime(config, TOKENS, compat=True).schedule(10)
    mu = 0.5 + (1.15 - 0.5) / 3840 * (TOKENS - 256)
    shift = np.exp(mu) if kind == "exponential" else mu
    twin = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift, final_sigmas_type="zero"
    )
    twin.set_timesteps(10)
    assert np.allclose(schedule.sigma, twin.sigmas.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EULER | {"stochastic_sampling": True}, "stochastic_sampling is not supported"),
        (EULER | {"invert_sigmas": True}, "invert_sigmas is not supported"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "FlowMatchHeunDiscreteScheduler is not"),
        ({"_class_name": "FlowMatchLCMScheduler"}, "FlowMatchLCMScheduler is not"),
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler is not"),
    ],
)
def test_other_schedulers_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        FlowTime(config, TOKENS)
