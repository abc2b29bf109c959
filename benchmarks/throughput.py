"""Throughput of the engine, measured side by side in one run.

Two ratios: the engine against bare network calls at the same batch (demand: 0.95 or more), and whole pictures of the
engine against StableDiffusionPipeline with the same scheduler at the same batch (demand: 1.0 or more). Rounds are
interleaved, so that another load on the machine meets all of them; a ratio is the median over rounds. Exit code 1 when
a demand is missed.

    python benchmarks/throughput.py [--model shapes-sd|FOLDER] [--batch 16] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.engine import Engine
from lotts_search.registry import load_backbone
from lotts_search.work import Fresh, Sampling, Segment

PROMPT = "a red circle"


def seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Wall time of ``action`` to the end of its work on the device."""
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def engine_run(engine: Engine, sampling: Sampling, count: int, stop: int, first: int) -> None:
    """``count`` fresh trajectories from pure noise to step ``stop``."""
    futures = [
        engine.submit(Segment(0, sampling, (f"seed {seed}",), stop, noise=Fresh(seed)))
        for seed in range(first, first + count)
    ]
    while engine.tick():
        pass
    for future in futures:
        future.result(timeout=0)


@torch.inference_mode()
def bare_calls(backbone: StableDiffusion, batch: int, calls: int) -> None:
    """The same number of network calls with nothing around them."""
    latents = torch.randn(batch, *backbone.info.latent, device=backbone.device)
    times = torch.full((batch,), 500.0, device=backbone.device)
    text = backbone.stack([torch.zeros_like(backbone.encode_prompts([PROMPT])[0])] * batch)
    for _ in range(calls):
        backbone.unet(latents.to(backbone.unet.dtype), times, text, return_dict=False)


def pipeline_of(backbone: StableDiffusion) -> StableDiffusionPipeline:
    """diffusers' own pipeline over the same modules, with the same sampler."""
    scheduler: Any = DPMSolverMultistepScheduler
    pipeline = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=scheduler.from_config(backbone.scheduler, algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-sd", help="registered name, folder or hub id")
    parser.add_argument("--batch", type=int, default=16, help="network rows in one call")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--guidance", type=float, default=3.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = load_backbone(options.model)
    if not isinstance(backbone, StableDiffusion):
        raise SystemExit(f"{options.model} is not a Stable Diffusion model")
    device, batch, steps = backbone.device, options.batch, options.steps
    sampling = Sampling(PROMPT, steps, options.guidance)
    count = batch // 2 if sampling.guided else batch
    engine, pipeline = Engine(backbone, batch), pipeline_of(backbone)

    def pipeline_run() -> None:
        pipeline(
            [PROMPT] * count,
            num_inference_steps=steps,
            guidance_scale=options.guidance,
            height=backbone.info.image[0],
            width=backbone.info.image[1],
            output_type="np",
        )

    actions: dict[str, Callable[[int], None]] = {
        "bare": lambda number: bare_calls(backbone, batch, steps - 1),
        # To the last step but one: nothing is decoded.
        "engine": lambda number: engine_run(engine, sampling, count, steps - 1, number),
        "pipeline": lambda number: pipeline_run(),
        "engine, whole pictures": lambda number: engine_run(engine, sampling, count, steps, number),
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(-1, options.rounds):  # round -1 warms up
        for name, action in actions.items():
            took = seconds(lambda action=action, number=number: action(1000 * number), device)  # type: ignore[misc]
            if number >= 0:
                taken[name].append(took)

    def ratio(of: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(taken[to], taken[of], strict=True))

    median = {name: statistics.median(times) for name, times in taken.items()}
    calls, pictures = ratio("engine", "bare"), ratio("engine, whole pictures", "pipeline")
    rows = batch * (steps - 1)
    print(f"{backbone.info.name} on {device}, {options.threads} threads, {batch} rows a call, {steps} steps")
    print(f"bare network calls     {rows / median['bare']:9.1f} rows/s")
    print(f"engine                 {rows / median['engine']:9.1f} rows/s    ratio {calls:.3f}")
    print(f"pipeline               {count / median['pipeline']:9.3f} pictures/s")
    print(f"engine                 {count / median['engine, whole pictures']:9.3f} pictures/s    ratio {pictures:.3f}")
    return int(calls < 0.95 or pictures < 1.0)


if __name__ == "__main__":
    sys.exit(main())
