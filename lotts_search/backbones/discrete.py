"""Schedules of models trained on discrete timesteps (Stable Diffusion, SDXL), from a scheduler's config."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from lotts_search.errors import BadInput
from lotts_search.work.model import Schedule

_TABLE_OF_BETAS = (
    "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSDE",
    "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete",
    "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD", "UniPCMultistep",
)  # fmt: skip
"""Schedulers whose noise levels are a table of betas, indexed by the timesteps that the network gets."""
_OF_CONSISTENCY = ("LCM", "TCD")
"""Schedulers that take their timesteps from a coarse schedule that the model was distilled on."""
_REPRODUCED = ("DDIM", "EulerDiscrete", "DPMSolverMultistep")
"""Schedulers whose samples the solvers can reproduce, if the rest of the config agrees."""
_OTHER_CONVENTIONS = {
    "timestep_type": "discrete",
    "use_flow_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
}
"""Settings that change the meaning of timesteps or levels, with their only supported values."""
_DPM_SETTINGS = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "final_sigmas_type": ("zero",),
    "euler_at_final": (False,),
    "use_lu_lambdas": (False,),
    "thresholding": (False,),
}
"""Settings of DPM-Solver++ with which the solver ``dpm`` makes the same steps."""
_TOLERANCE = 1e-4
"""Largest difference between a sample and the scheduler's, relative to the largest value."""


def corrected(config: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's config as ``StableDiffusionPipeline`` corrects outdated ones: its timesteps have an offset
    of 1, and it does not clip x0 predictions."""
    kind = getattr(diffusers, _kind(config), None)
    own = kind.from_config(config).config if kind is not None else {}
    return config | {name: value for name, value in (("steps_offset", 1), ("clip_sample", False)) if name in own}


def _kind(config: dict[str, Any]) -> str:
    return str(config.get("_class_name") or "DPMSolverMultistepScheduler")


class DiscreteTime:
    """The noise levels of a diffusers scheduler config, as ``DPMSolverMultistepScheduler.set_timesteps`` or the config's
    own scheduler chooses them.

    Args:
        config: the config of a scheduler with discrete timesteps of a variance-preserving process (DDIM, PNDM, Euler,
            DPM-Solver and so on); spacing, offset, betas, zero terminal SNR and prediction type are respected.
        model: name of the model in messages.
        own: use the steps of the config's own scheduler. A sample then equals that of a pipeline with this scheduler:
            for DDIM and Euler with the solver ``ddim`` and η = 0, for DPM-Solver++ with ``dpm``. The schedule is checked
            against the scheduler.

    Raises:
        BadInput: the config describes another kind of process, an unsupported setting or an unknown prediction type,
            or, with ``own``, a scheduler whose samples cannot be reproduced.
    """

    def __init__(self, config: dict[str, Any], model: str = "?", *, own: bool = False):
        self._model, self._kind = model, _kind(config)
        if self._kind.removesuffix("Scheduler") not in _TABLE_OF_BETAS:
            raise BadInput(f"model {model}: its {self._kind} is not a known scheduler over discrete timesteps")
        for name, supported in _OTHER_CONVENTIONS.items():
            if config.get(name, supported) != supported:
                raise BadInput(f"model {model}: {name} = {config[name]!r} of its {self._kind} is not supported")
        scheduler: Any = DPMSolverMultistepScheduler
        self._scheduler = scheduler.from_config(
            config,
            algorithm_type="sde-dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
        )
        self._own: Any = self._own_scheduler(config) if own else None
        coarse = self._kind.removesuffix("Scheduler") in _OF_CONSISTENCY
        self._coarse: Any = getattr(diffusers, self._kind).from_config(config) if coarse else None
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
        scheduler = self._own or self._coarse or self._scheduler
        if scheduler is self._coarse and steps > scheduler.config["original_inference_steps"]:
            scheduler.set_timesteps(steps, original_inference_steps=steps)
        else:
            scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.numpy().astype(np.float64)
        if self._own is not None:
            refusal = self._irreproducible(steps)
        if len(timesteps) != steps:
            raise refusal
        start = 1.0
        if hasattr(scheduler, "sigmas"):
            ratio = scheduler.sigmas.double().numpy()
            alpha = 1 / np.sqrt(ratio**2 + 1)
            sigma = ratio * alpha
            if self._own is not None and self._kind == "EulerDiscreteScheduler":
                # Euler's latents are x/alpha: they begin at another scale and end as x0 + ratio·ε.
                start = float(scheduler.init_noise_sigma) * float(alpha[0])
                alpha[-1], sigma[-1] = 1, ratio[-1]
        else:
            levels = scheduler.alphas_cumprod.double().numpy()
            last = 1.0 if self._own is None else float(scheduler.final_alpha_cumprod)
            clean = np.append(levels[timesteps.astype(int)], last)
            alpha, sigma = np.sqrt(clean), np.sqrt(1 - clean)
        if len(sigma) != steps + 1 or not np.all(np.diff(sigma) < 0):
            raise refusal
        schedule = Schedule(alpha, sigma, timesteps, start)
        if self._own is not None and self._kind != "DPMSolverMultistepScheduler":
            self._compare(schedule)
        return schedule

    def _own_scheduler(self, config: dict[str, Any]) -> Any:
        kind = self._kind.removesuffix("Scheduler")
        if kind not in _REPRODUCED:
            raise BadInput(
                f"model {self._model}: own_timesteps cannot reproduce the samples of its {self._kind}; "
                f"known: {', '.join(_REPRODUCED)}"
            )
        made = getattr(diffusers, self._kind).from_config(config)
        for name, good in _DPM_SETTINGS.items() if kind == "DPMSolverMultistep" else ():
            if made.config[name] not in good:
                raise BadInput(
                    f"model {self._model}: own_timesteps cannot reproduce the samples of its {self._kind} with "
                    f"{name} = {made.config[name]!r}; known: {', '.join(map(str, good))}"
                )
        return made

    def _compare(self, schedule: Schedule) -> None:
        """Sample with the scheduler and with DDIM on the schedule, using a made-up network, and refuse a difference."""
        noise = torch.linspace(-4, 4, 64, dtype=torch.float64).view(1, 1, 8, 8)

        def network(latents: Tensor, timestep: float) -> Tensor:
            return 0.4 * latents.double() + 0.3 * torch.sin(3 * noise + 0.01 * timestep)

        theirs = noise * float(self._own.init_noise_sigma)
        for timestep in self._own.timesteps:
            output = network(self._own.scale_model_input(theirs, timestep), float(timestep))
            theirs = self._own.step(output, timestep, theirs, return_dict=False)[0].double()
        ours = noise * schedule.start
        pairs = list(zip(schedule.alpha.tolist(), schedule.sigma.tolist(), strict=True))
        for (alpha, sigma), (next_alpha, next_sigma), timestep in zip(
            pairs[:-1], pairs[1:], schedule.timestep.tolist(), strict=True
        ):
            x0 = self.to_x0(network(ours, timestep), ours, alpha, sigma)
            ours = next_alpha * x0 + next_sigma / sigma * (ours - alpha * x0)
        if not (ours - theirs).abs().max() <= _TOLERANCE * theirs.abs().max():
            raise self._irreproducible(len(schedule.timestep))

    def _irreproducible(self, steps: int) -> BadInput:
        return BadInput(
            f"model {self._model}: own_timesteps cannot reproduce the samples of its {self._kind} with this config "
            f"in {steps} steps: {dict(self._own.config)}"
        )

    def train_level(self, timestep: int) -> tuple[float, float]:
        """Return (alpha, sigma) at a training timestep.

        Raises:
            BadInput: the timestep is out of range.
        """
        if not 0 <= timestep < self.levels:
            raise BadInput(f"a noise level must be within 0..{self.levels - 1}, got {timestep}")
        clean = self._clean[timestep]
        return float(np.sqrt(clean)), float(np.sqrt(1 - clean))

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Return the x0 prediction [B, C, H, W] of a raw output; alpha and sigma are [B, 1, 1, 1] or numbers."""
        match self.prediction:
            case "epsilon":
                return (latents - sigma * output) / alpha
            case "v_prediction":
                return alpha * latents - sigma * output
            case _:
                return output
