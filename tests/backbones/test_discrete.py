"""Noise levels from the scheduler configs of published Stable Diffusion and SDXL models."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from lotts_search.backbones.discrete import DiscreteTime, corrected
from lotts_search.engine.solver import coefficients
from lotts_search.errors import BadInput
from tests.tiny import scheduler_config, tiny_pipeline

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PUBLISHED: dict[str, dict[str, Any]] = {
    "SD 1.5": BETAS
    | {"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
    | {"clip_sample": False, "trained_betas": None},
    "SD 2.1": BETAS
    | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "set_alpha_to_one": False, "steps_offset": 1}
    | {"clip_sample": False, "skip_prk_steps": True, "trained_betas": None},
    "SDXL": BETAS
    | {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timestep_spacing": "leading"}
    | {"interpolation_type": "linear", "use_karras_sigmas": False, "steps_offset": 1, "sample_max_value": 1.0},
    "SDXL few steps": BETAS
    | {"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "epsilon", "timestep_spacing": "trailing"},
    "zero terminal SNR": BETAS
    | {"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    | {"rescale_betas_zero_snr": True},
}


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("steps", [4, 30])
def test_levels_are_those_of_dpm_solver_with_the_schedulers_config(config: dict[str, Any], steps: int) -> None:
    time = DiscreteTime(config)
    solver = DPMSolverMultistepScheduler.from_config(config, final_sigmas_type="zero")
    solver.set_timesteps(steps)
    schedule = time.schedule(steps)
    assert np.array_equal(schedule.timestep, solver.timesteps.numpy())
    # The levels are those of the scheduler at the timesteps that the network receives.
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    clean = own.alphas_cumprod.numpy().astype(np.float64)[schedule.timestep.astype(int)]
    assert np.allclose(schedule.alpha[:-1], np.sqrt(clean), rtol=1e-4)
    assert np.allclose(schedule.alpha**2 + schedule.sigma**2, 1)
    assert (schedule.alpha[-1], schedule.sigma[-1]) == (1, 0)
    assert time.prediction == config.get("prediction_type", "epsilon")


@pytest.mark.parametrize("kind", ["LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("original", [50, 100])
def test_a_consistency_model_gets_the_timesteps_that_it_was_distilled_on(kind: str, steps: int, original: int) -> None:
    config = PUBLISHED["SD 1.5"] | {
        "_class_name": kind,
        "timestep_spacing": "leading",
        "original_inference_steps": original,
    }
    schedule, own = DiscreteTime(config).schedule(steps), getattr(diffusers, kind).from_config(config)
    own.set_timesteps(steps)
    assert np.array_equal(schedule.timestep, own.timesteps.numpy()) and schedule.timestep[0] == 999
    assert np.allclose(schedule.alpha[:-1] ** 2, own.alphas_cumprod[own.timesteps].numpy(), rtol=1e-6)
    assert np.allclose(schedule.alpha**2 + schedule.sigma**2, 1) and schedule.sigma[-1] == 0


def test_a_consistency_model_may_take_more_steps_than_it_was_distilled_on() -> None:
    config = PUBLISHED["SD 1.5"] | {"_class_name": "LCMScheduler"}
    assert np.array_equal(DiscreteTime(config).schedule(100).timestep, np.arange(999, 0, -10))
    with pytest.raises(BadInput, match=r"within 1\.\.999, got 1000"):
        DiscreteTime(config).schedule(1000)


def test_a_schedule_with_zero_terminal_snr_begins_at_pure_noise() -> None:
    schedule = DiscreteTime(PUBLISHED["zero terminal SNR"]).schedule(10)
    assert schedule.timestep[0] == 999 and 0 < schedule.alpha[0] < 1e-3
    ordinary = DiscreteTime(PUBLISHED["SDXL"]).schedule(10)
    assert ordinary.alpha[0] > 0.05


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "mine: its EDMEulerScheduler is not"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler is not"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction.*known: epsilon, v_prediction, sample"),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "zero terminal SNR needs v_prediction"),
    ],
)
def test_unsupported_configs_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        DiscreteTime(scheduler_config(**config), "mine")


OWN: dict[str, dict[str, Any]] = {
    "SD 2.1": PUBLISHED["SD 2.1"],
    "SD 1.5 with DDIM": PUBLISHED["SD 1.5"] | {"_class_name": "DDIMScheduler", "skip_prk_steps": None},
    "DDIM without an offset": BETAS | {"_class_name": "DDIMScheduler", "clip_sample": False},
    "DDIM to one": PUBLISHED["SD 2.1"] | {"set_alpha_to_one": True},
    "DDIM trailing": PUBLISHED["SD 2.1"] | {"timestep_spacing": "trailing"},
    "DDIM zero terminal SNR": PUBLISHED["SD 2.1"] | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    "DDIM of x0": PUBLISHED["SD 2.1"] | {"prediction_type": "sample"},
    "SDXL": PUBLISHED["SDXL"],
    "Turbo with Euler": PUBLISHED["SDXL few steps"] | {"_class_name": "EulerDiscreteScheduler"},
    "Euler linspace": PUBLISHED["SDXL"] | {"timestep_spacing": "linspace"},
    "Euler to sigma_min": PUBLISHED["SDXL"] | {"final_sigmas_type": "sigma_min"},
    "Euler Karras": PUBLISHED["SDXL"] | {"use_karras_sigmas": True},
    "Euler exponential": PUBLISHED["SDXL"] | {"use_exponential_sigmas": True},
    "Euler zero terminal SNR": PUBLISHED["zero terminal SNR"],
}


@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_own_timesteps_give_the_sample_of_the_scheduler(config: dict[str, Any], steps: int) -> None:
    """Compare a pipeline's loop around its scheduler with the solver on the schedule, using a made-up network."""
    time = DiscreteTime(config, own=True)
    schedule, scheduler = time.schedule(steps), getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(steps)
    rng = np.random.default_rng(steps)
    noise, bias = rng.standard_normal((2, 1, 4, 8, 8))

    def network(latents: Any, timestep: Any) -> Any:
        return 0.7 * np.asarray(latents) + np.cos(float(timestep) / 90 + bias)

    theirs = torch.from_numpy(noise * float(scheduler.init_noise_sigma))
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(theirs, timestep), timestep)
        theirs = scheduler.step(torch.from_numpy(output), timestep, theirs).prev_sample.double()
    rows = coefficients(schedule, 0.0, "ddim")[0]
    ours = noise * schedule.start
    for index, timestep in enumerate(schedule.timestep):
        alpha, sigma = schedule.alpha[index], schedule.sigma[index]
        output = network(ours, timestep)
        x0 = {
            "epsilon": lambda: (ours - sigma * output) / alpha,  # noqa: B023
            "v_prediction": lambda: alpha * ours - sigma * output,  # noqa: B023
            "sample": lambda: output,  # noqa: B023
        }[time.prediction]()
        ours = rows[index, 0] * ours + rows[index, 1] * x0
    assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * np.abs(theirs.numpy()).max()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PUBLISHED["SD 1.5"], "own_timesteps cannot reproduce the samples of its PNDMScheduler; known: DDIM, Euler"),
        (PUBLISHED["SDXL few steps"], "the samples of its EulerAncestralDiscreteScheduler"),
        (BETAS | {"_class_name": "UniPCMultistepScheduler"}, "the samples of its UniPCMultistepScheduler"),
        (PUBLISHED["SD 2.1"] | {"clip_sample": True}, "the samples of its DDIMScheduler with this config"),
        (PUBLISHED["SD 2.1"] | {"thresholding": True}, "the samples of its DDIMScheduler with this config"),
        (PUBLISHED["SD 2.1"] | {"timestep_spacing": "linspace"}, "the samples of its DDIMScheduler with this config"),
        (PUBLISHED["SDXL"] | {"interpolation_type": "log_linear"}, "the samples of its EulerDiscreteScheduler with"),
        (BETAS | {"solver_type": "heun"}, "with solver_type = 'heun'; known: midpoint"),
    ],
)
def test_own_timesteps_that_would_give_another_sample_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        DiscreteTime(config, "mine", own=True).schedule(7)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"timestep_type": "continuous"}, "mine: timestep_type = 'continuous' of its EulerDiscreteScheduler is not"),
        ({"sigma_max": 700.0}, "sigma_max = 700.0 of its"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas = True of its UniPC"),
        ({"_class_name": "IPNDMScheduler"}, "its IPNDMScheduler is not a known scheduler"),
        ({"_class_name": "UnCLIPScheduler"}, "its UnCLIPScheduler is not a known scheduler"),
        ({"_class_name": "MadeUpScheduler"}, "its MadeUpScheduler is not a known scheduler"),
    ],
)
def test_other_conventions_of_time_and_levels_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        DiscreteTime(PUBLISHED["SDXL"] | config, "mine")


@pytest.mark.parametrize("name", ["SD 2.1", "DDIM without an offset", "SD 1.5 with DDIM"])
def test_outdated_configs_are_corrected_as_the_pipeline_corrects_them(name: str) -> None:
    config = {key: value for key, value in OWN[name].items() if key not in ("clip_sample", "steps_offset")}
    pipeline = tiny_pipeline()
    fresh = type(pipeline)(
        **{**pipeline.components, "scheduler": diffusers.DDIMScheduler.from_config(config)},
        requires_safety_checker=False,
    )
    fixed = corrected(config)
    theirs = fresh.scheduler
    theirs.set_timesteps(20)
    assert (fixed["steps_offset"], fixed["clip_sample"]) == (1, False)
    assert np.array_equal(DiscreteTime(fixed, own=True).schedule(20).timestep, theirs.timesteps.numpy())
