"""Schedules of flow-matching models (FLUX, Stable Diffusion 3), from a scheduler's config.

Rectified flow is ``x = (1−σ)·x0 + σ·ε``: alpha = 1 − σ, sigma = σ, and the network, at timestep σ·1000, predicts
``ε − x0``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lotts_search.errors import BadInput
from lotts_search.work.model import Schedule


class FlowTime:
    """The noise levels of a diffusers scheduler config, as that scheduler's ``set_timesteps`` chooses them.

    A ``FlowMatchEulerDiscreteScheduler`` begins at σ = 1, pure noise, where alpha is 0; its timesteps are exactly
    σ·1000. A ``DPMSolverMultistepScheduler`` with ``use_flow_sigmas`` begins at σ = 0.999 and truncates its timesteps
    to integers, so that the network gets another level than the latent has; here they stay exact unless ``compat``.

    Args:
        config: the config of either scheduler; shift, dynamic shifting and spacing are respected.
        tokens: length of the image sequence, on which dynamic shifting depends.
        compat: use the levels and truncated timesteps of ``DPMSolverMultistepScheduler`` for either config.
        spaced: space the levels of a ``FlowMatchEulerDiscreteScheduler`` from 1 to 1/T before the shift, as
            FluxPipeline does; False leaves the choice to the scheduler, as StableDiffusion3Pipeline does.

    Raises:
        BadInput: the config does not describe a flow-matching scheduler, or its σ increases.
    """

    def __init__(self, config: dict[str, Any], tokens: int, *, compat: bool = False, spaced: bool = True):
        name = str(config.get("_class_name", ""))
        self._euler = not config.get("use_flow_sigmas")
        if self._euler and not ("FlowMatchEuler" in name or (not name and "base_image_seq_len" in config)):
            raise BadInput(f"the scheduler {name or 'of this config'} is not a flow-matching scheduler")
        for setting in ("invert_sigmas", "stochastic_sampling"):
            if config.get(setting):
                raise BadInput(f"a flow-matching scheduler with {setting} is not supported")
        self._compat, self._spaced = compat, spaced
        self._mu = _mu(config, tokens) if config.get("use_dynamic_shifting") else None
        if compat or not self._euler:
            shift = config.get("shift" if self._euler else "flow_shift", 1.0)
            if self._mu is not None:
                shift = self._mu if config.get("time_shift_type") == "linear" else float(np.exp(self._mu))
            self._euler = False
            self._scheduler: Any = DPMSolverMultistepScheduler(
                num_train_timesteps=config.get("num_train_timesteps", 1000),
                algorithm_type="sde-dpmsolver++",
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                flow_shift=shift,
                final_sigmas_type="zero",
            )
        else:
            scheduler: Any = FlowMatchEulerDiscreteScheduler
            self._scheduler = scheduler.from_config(config)
        self._schedules: dict[int, Schedule] = {}

    @property
    def levels(self) -> int:
        """Return the number of training timesteps; the network's timestep is σ times this."""
        return int(self._scheduler.config["num_train_timesteps"])

    def schedule(self, steps: int) -> Schedule:
        """Return the schedule of ``steps`` steps.

        Raises:
            BadInput: ``steps`` is below 1 or more than the model's timesteps.
        """
        if steps not in self._schedules:
            self._schedules[steps] = self._new_schedule(steps)
        return self._schedules[steps]

    def _new_schedule(self, steps: int) -> Schedule:
        refusal = BadInput(f"the number of steps must be within 1..{self.levels - 1}, got {steps}")
        if not 1 <= steps < self.levels:
            raise refusal
        if self._euler:
            even = np.linspace(1.0, 1 / steps, steps) if self._spaced else None
            self._scheduler.set_timesteps(steps, sigmas=even, mu=self._mu)
        else:
            self._scheduler.set_timesteps(steps)
        sigma = self._scheduler.sigmas.double().numpy()
        if len(sigma) != steps + 1 or not np.all(np.diff(sigma) < 0):
            raise refusal
        timestep = sigma[:-1] * self.levels
        if self._compat:
            timestep = self._scheduler.timesteps.numpy().astype(np.float64)
        return Schedule(1 - sigma, sigma, timestep)

    def train_level(self, timestep: int) -> tuple[float, float]:
        """Return (alpha, sigma) at a training timestep: σ = timestep/1000.

        Raises:
            BadInput: the timestep is out of range.
        """
        if not 0 <= timestep < self.levels:
            raise BadInput(f"a noise level must be within 0..{self.levels - 1}, got {timestep}")
        return 1 - timestep / self.levels, timestep / self.levels

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the x0 prediction [B, C, H, W] of a raw output; sigma is [B, 1, 1, 1]."""
        return latents - sigma * output


def _mu(config: dict[str, Any], tokens: int) -> float:
    """Return the exponent of dynamic shifting, linear in the length of the image sequence."""
    base, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(low + (high - low) * (tokens - base) / (most - base))
