"""Schedules of models trained on discrete timesteps (Stable Diffusion, SDXL), from a scheduler's config."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from lotts_search.errors import BadInput
from lotts_search.work.model import Schedule

_OTHER_PROCESSES = ("EDM", "Flow", "CMStochastic", "Cosine", "Karras", "ScoreSde", "VQ", "SCM")
"""Name prefixes of schedulers whose noise levels do not come from a table of betas."""
_ONE_CALL_PER_STEP = ("DDIM", "DDPM", "Euler", "DPMSolverMultistep", "UniPC", "DEIS", "LMS")
"""Name prefixes of schedulers that make T network calls in T steps."""


def _own_scheduler(config: dict[str, Any], model: str) -> Any:
    kind = str(config.get("_class_name", ""))
    if not kind.startswith(_ONE_CALL_PER_STEP):
        known = ", ".join(_ONE_CALL_PER_STEP)
        raise BadInput(f"model {model}: the timesteps of its {kind or 'scheduler'} cannot be used; known: {known}")
    return getattr(diffusers, kind).from_config(config)


class DiscreteTime:
    """The noise levels of a diffusers scheduler config, as ``DPMSolverMultistepScheduler.set_timesteps`` or the config's
    own scheduler chooses them.

    Args:
        config: the config of a scheduler with discrete timesteps of a variance-preserving process (DDIM, PNDM, Euler,
            DPM-Solver and so on); spacing, offset, betas, zero terminal SNR and prediction type are respected.
        model: name of the model in messages.
        own: use the steps of the config's own scheduler. With the solver ``ddim`` and η = 0 a sample then equals that
            of the folder's pipeline with its DDIM or Euler scheduler.

    Raises:
        BadInput: the config describes another kind of process or an unknown prediction type, or, with ``own``, a
            scheduler that calls the network more than once per step.
    """

    def __init__(self, config: dict[str, Any], model: str = "?", *, own: bool = False):
        kind = str(config.get("_class_name", ""))
        if kind.startswith(_OTHER_PROCESSES):
            raise BadInput(f"model {model}: its {kind} is not a scheduler over discrete timesteps; not supported")
        scheduler: Any = DPMSolverMultistepScheduler
        self._scheduler = scheduler.from_config(
            config,
            algorithm_type="sde-dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
        )
        self._own = _own_scheduler(config, model) if own else None
        self._schedules: dict[int, Schedule] = {}
        self._clean = self._scheduler.alphas_cumprod.double().numpy()
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise BadInput(
                f"model {model}: prediction type {self.prediction!r} is not supported;"
                " known: epsilon, v_prediction, sample"
            )
        if self.prediction == "epsilon" and self._clean[-1] < 1e-6:
            # x0 = (x - sigma·ε)/alpha divides by zero at pure noise, where only v and x0 can be predicted.
            raise BadInput(f"model {model}: a schedule with zero terminal SNR needs v_prediction, not epsilon")

    @property
    def prediction(self) -> str:
        """Return ``epsilon``, ``v_prediction`` or ``sample``."""
        return str(self._scheduler.config["prediction_type"])

    @property
    def levels(self) -> int:
        """Return the number of training timesteps."""
        return len(self._clean)

    def schedule(self, steps: int) -> Schedule:
        """Return the schedule of ``steps`` steps.

        Raises:
            BadInput: ``steps`` is below 1 or more than the model's timesteps allow.
        """
        if steps not in self._schedules:
            self._schedules[steps] = self._new_schedule(steps)
        return self._schedules[steps]

    def _new_schedule(self, steps: int) -> Schedule:
        refusal = BadInput(f"the number of steps must be within 1..{self.levels - 1}, got {steps}")
        if not 1 <= steps < self.levels:
            raise refusal
        scheduler = self._own or self._scheduler
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.numpy().astype(np.float64)
        if self._own is None or hasattr(scheduler, "sigmas"):
            ratio = scheduler.sigmas.double().numpy()
        else:
            clean = self._clean[timesteps.astype(int)]
            ratio = np.append(np.sqrt((1 - clean) / clean), 0)
        if len(ratio) != steps + 1 or np.any(np.diff(ratio) >= 0):
            raise refusal
        alpha = 1 / np.sqrt(ratio**2 + 1)
        return Schedule(alpha, ratio * alpha, timesteps)

    def train_level(self, timestep: int) -> tuple[float, float]:
        """Return (alpha, sigma) at a training timestep.

        Raises:
            BadInput: the timestep is out of range.
        """
        if not 0 <= timestep < self.levels:
            raise BadInput(f"a noise level must be within 0..{self.levels - 1}, got {timestep}")
        clean = self._clean[timestep]
        return float(np.sqrt(clean)), float(np.sqrt(1 - clean))

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the x0 prediction [B, C, H, W] of a raw output; alpha and sigma are [B, 1, 1, 1]."""
        match self.prediction:
            case "epsilon":
                return (latents - sigma * output) / alpha
            case "v_prediction":
                return alpha * latents - sigma * output
            case _:
                return output
