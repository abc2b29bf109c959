"""Schedules of models that were trained on discrete timesteps (Stable Diffusion, SDXL), from a scheduler's config."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers import DPMSolverMultistepScheduler

from lotts_search.errors import BadInput
from lotts_search.work.model import Schedule

_OTHER_PROCESSES = ("EDM", "Flow", "CMStochastic", "Cosine", "Karras", "ScoreSde", "VQ", "SCM")
"""Beginnings of the names of schedulers whose noise levels are not those of a table of betas."""
_ONE_CALL_A_STEP = ("DDIM", "DDPM", "Euler", "DPMSolverMultistep", "UniPC", "DEIS", "LMS")
"""Beginnings of the names of schedulers whose T steps are T network calls."""


def _own_scheduler(config: dict[str, Any], model: str) -> Any:
    kind = str(config.get("_class_name", ""))
    if not kind.startswith(_ONE_CALL_A_STEP):
        known = ", ".join(_ONE_CALL_A_STEP)
        raise BadInput(f"model {model}: the timesteps of its {kind or 'scheduler'} cannot be used; known: {known}")
    return getattr(diffusers, kind).from_config(config)


class DiscreteTime:
    """The noise levels of a diffusers scheduler config, as ``DPMSolverMultistepScheduler.set_timesteps`` lays them, or
    as the config's own scheduler does.

    Args:
        config: the config of any scheduler that steps over discrete timesteps of a variance-preserving process (DDIM,
            PNDM, Euler, DPM-Solver and so on); spacing, offset, betas, zero terminal SNR and prediction type are
            honoured.
        model: its name, for messages.
        own: the steps of the scheduler that the config is of. With the solver ``ddim`` and η = 0 a sample is then what
            the folder's pipeline makes of its DDIM or Euler scheduler.

    Raises:
        BadInput: the config is of another kind of process, of a prediction type that is not known, or, with ``own``,
            of a scheduler that asks the network more than once a step.
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
            # x0 = (x - sigma·ε)/alpha divides by nothing there: only v and x0 can be predicted from pure noise.
            raise BadInput(f"model {model}: a schedule with zero terminal SNR needs v_prediction, not epsilon")

    @property
    def prediction(self) -> str:
        """``epsilon``, ``v_prediction`` or ``sample``."""
        return str(self._scheduler.config["prediction_type"])

    @property
    def levels(self) -> int:
        """How many timesteps the model was trained on."""
        return len(self._clean)

    def schedule(self, steps: int) -> Schedule:
        """The schedule of ``steps`` steps.

        Raises:
            BadInput: ``steps`` is below 1 or more than the model's timesteps allow.
        """
        if steps not in self._schedules:
            self._schedules[steps] = self._lay(steps)
        return self._schedules[steps]

    def _lay(self, steps: int) -> Schedule:
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
        """(alpha, sigma) at a training timestep.

        Raises:
            BadInput: there is no such timestep.
        """
        if not 0 <= timestep < self.levels:
            raise BadInput(f"a noise level must be within 0..{self.levels - 1}, got {timestep}")
        clean = self._clean[timestep]
        return float(np.sqrt(clean)), float(np.sqrt(1 - clean))
