"""Noise levels from the scheduler configs of published Stable Diffusion and SDXL models."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler

from lotts_search.backbones.discrete import DiscreteTime
from lotts_search.errors import BadInput
from tests.tiny import scheduler_config

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
