"""Throughput of the engine, measured side by side in one run.

Two ratios: the engine to bare network calls at the same batch (demand: 0.97 or more), and whole images of the engine
to StableDiffusionPipeline with the same scheduler, modules and batch (demand: 1.0 or more). Both get the same prompts,
one per image and new ones in each round, so both encode them; the engine caches the negative prompt. Rounds are
interleaved and every other one is reversed, so that other load on the machine affects all alike; a ratio is the median
over rounds.

On a CPU both ratios are also printed by CPU time, which is more reliable on a busy machine, with the share of CPU time
spent outside of the models (U-Net, text encoder, autoencoder): the cost of the engine and the pipeline themselves.

    python benchmarks/throughput.py [--model shapes-sd|FOLDER] [--batch 16] [--threads N] [--device cuda [--graphs]]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.engine.engine import Engine
from lotts_search.registry import load_backbone
from lotts_search.work.requests import Fresh, Sampling, Segment

WORDS = ("red", "green", "blue", "yellow", "white", "black"), ("circle", "square", "star", "triangle", "ring", "cross")
PLACES = "left", "right", "top", "bottom"


def prompts() -> Iterator[str]:
    """Yield prompts that do not repeat for 5184 images."""
    things = [f"{colour} {shape}" for colour, shape in itertools.product(*WORDS)]
    for one, other, place in itertools.cycle(itertools.product(things, things, PLACES)):
        yield f"a {one} and a {other} on the {place}"


class Clock:
    """Adds up the CPU time of a backbone's models, from its construction on."""

    def __init__(self, backbone: StableDiffusion):
        self.models = 0.0
        for module, name in (backbone.unet, "forward"), (backbone.text_encoder, "forward"), (backbone.vae, "decode"):
            setattr(module, name, self._timed(getattr(module, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            result = function(*arguments, **named)
            self.models += time.process_time() - began
            return result

        return timed


def engine_run(engine: Engine, sampling: Sampling, texts: list[str], stop: int, first: int) -> None:
    """Run one fresh trajectory per prompt from pure noise to step ``stop``."""
    futures = []
    for seed, text in enumerate(texts, first):
        settings = Sampling(text, sampling.steps, sampling.guidance)
        futures.append(engine.submit(Segment(0, settings, (f"seed {seed}",), stop, noise=Fresh(seed))))
    while engine.tick():
        pass
    for future in futures:
        future.result(timeout=0)


def bare_calls(backbone: StableDiffusion, batch: int) -> Callable[[int], None]:
    """Return a function that makes network calls and nothing else."""
    dtype = backbone.unet.dtype
    latents = torch.randn(batch, *backbone.info.latent, device=backbone.device, dtype=dtype)
    times = torch.full((batch,), 500.0, device=backbone.device)
    text = backbone.stack([backbone.encode_prompts(["a red circle"])[0]] * batch)

    @torch.inference_mode()
    def calls(count: int) -> None:
        for _ in range(count):
            backbone.unet(latents, times, text, return_dict=False)

    return calls


def pipeline_of(backbone: StableDiffusion) -> StableDiffusionPipeline:
    """Return the diffusers pipeline over the same modules, with the same sampler."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-sd", help="registered name, folder or hub id")
    parser.add_argument("--batch", type=int, default=16, help="network rows in one call")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--graphs", action="store_true", help="let the engine record network calls as CUDA graphs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = load_backbone(options.model, device=options.device, dtype=options.dtype)
    if not isinstance(backbone, StableDiffusion):
        raise SystemExit(f"{options.model} is not a Stable Diffusion model")
    device, batch, steps = backbone.device, options.batch, options.steps
    sampling = Sampling("", steps, options.guidance)
    count = batch // 2 if sampling.guided else batch
    bare, pipeline = bare_calls(backbone, batch), pipeline_of(backbone)
    engine = Engine(backbone, batch, graphs=options.graphs)
    clock, text = Clock(backbone), prompts()

    def pipeline_run(texts: list[str]) -> None:
        pipeline(
            texts,
            num_inference_steps=steps,
            guidance_scale=options.guidance,
            height=backbone.info.image[0],
            width=backbone.info.image[1],
            output_type="np",
        )

    actions: dict[str, Callable[[list[str], int], None]] = {
        "bare": lambda texts, number: bare(steps - 1),
        # Up to the last step but one, so that nothing is decoded.
        "engine": lambda texts, number: engine_run(engine, sampling, texts, steps - 1, number),
        "pipeline": lambda texts, number: pipeline_run(texts),
        "images": lambda texts, number: engine_run(engine, sampling, texts, steps, number),
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    computed: dict[str, list[float]] = {name: [] for name in actions}
    outside: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(-1, options.rounds):  # round -1 warms up
        shared = list(itertools.islice(text, count))
        order = list(actions) if number % 2 else list(actions)[::-1]
        for name in order:
            # The bare calls encode nothing, so the engine beside them gets a prompt that is cached by then.
            texts = ["a red circle"] * count if name == "engine" else shared
            clock.models, used, began = 0.0, time.process_time(), time.perf_counter()
            actions[name](texts, 1000 * number)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= 0:
                taken[name].append(time.perf_counter() - began)
                used = time.process_time() - used
                computed[name].append(used)
                outside[name].append((used - clock.models) / used)

    def ratio(of: str, to: str, times: dict[str, list[float]] = taken) -> float:
        return statistics.median(a / b for a, b in zip(times[to], times[of], strict=True))

    median = {name: statistics.median(times) for name, times in taken.items()}
    calls, images = ratio("engine", "bare"), ratio("images", "pipeline")
    rows = batch * (steps - 1)
    graphs = ", recorded calls" if options.graphs else ""
    print(f"{backbone.info.name} on {device}, {options.threads} threads, {batch} rows a call, {steps} steps{graphs}")
    print(f"bare network calls     {rows / median['bare']:9.1f} rows/s")
    print(f"engine                 {rows / median['engine']:9.1f} rows/s    ratio {calls:.3f} (demand 0.97)")
    print(f"pipeline               {count / median['pipeline']:9.3f} images/s")
    print(f"engine                 {count / median['images']:9.3f} images/s    ratio {images:.3f} (demand 1)")
    if device.type == "cpu":
        both = ratio("engine", "bare", computed), ratio("images", "pipeline", computed)
        print("by CPU time: ratio {:.3f} to bare calls, {:.3f} to the pipeline".format(*both))
        shares = ", ".join(f"{name} {100 * statistics.median(of):.2f} %" for name, of in outside.items())
        print(f"CPU time outside of the models: {shares}")


if __name__ == "__main__":
    main()
