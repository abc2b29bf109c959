"""Run diffusers' own pipelines on the noise of a search: the reference for every backbone."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from lotts_search.work.noise import draw
from lotts_search.work.requests import Lineage, Sampling


def solver_of(pipeline: Any, eta: float) -> Any:
    """Return the diffusers scheduler that matches the solver ``dpm``, from the pipeline's config."""
    return DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )


def pipeline_run(
    pipeline: Any, sampling: Sampling, lineage: Lineage, shape: tuple[int, int, int], scheduler: Any, **options: Any
) -> Any:
    """Return the pipeline's ``images`` with this scheduler and the step noise of ``lineage``. An image-to-image
    pipeline also gets the noise of a refinement that begins at the scheduler's first step.

    Args:
        shape: [C, H, W] of a latent.
        options: passed to the pipeline, e.g. ``latents``.
    """
    plain_step = scheduler.step
    plain_noise, plain_scale = getattr(scheduler, "add_noise", None), getattr(scheduler, "scale_noise", None)

    def step(output: Tensor, timestep: Tensor, latents: Tensor, **rest: Any) -> Any:
        if isinstance(scheduler, DPMSolverMultistepScheduler):
            index = scheduler.begin_index or 0 if scheduler.step_index is None else scheduler.step_index
            rest["variance_noise"] = torch.from_numpy(draw(1, lineage, "step", index, shape))[None]
        return plain_step(output, timestep, latents, **rest)

    def inside() -> Tensor:
        return torch.from_numpy(draw(1, lineage, "inside", scheduler.begin_index or 0, shape))[None]

    def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Any:
        return plain_noise(clean, inside(), timesteps)

    def scale_noise(clean: Tensor, timesteps: Tensor, noise: Tensor) -> Any:
        return plain_scale(clean, timesteps, inside())

    scheduler.step, scheduler.add_noise, scheduler.scale_noise = step, add_noise, scale_noise
    pipeline.scheduler, before = scheduler, pipeline.scheduler
    pipeline.set_progress_bar_config(disable=True)
    try:
        return pipeline(
            sampling.prompt,
            negative_prompt=sampling.negative or None,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            **options,
        ).images
    finally:
        pipeline.scheduler = before
