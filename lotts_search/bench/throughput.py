"""The engine against bare network calls, and against a pipeline of diffusers with the same scheduler, modules and batch.

Engine and pipeline get the same prompts, one per image and new ones in each round, so both encode them. A localization is compared
with a sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.bench.setting import Ratio, Setting, of, prompts
from lotts_search.engine.engine import Engine
from lotts_search.work.requests import Fresh, Generate, Locate, Result, Segment, State


def run(engine: Engine, works: list[Generate]) -> list[Result]:
    """Return the results of work that is submitted at once."""
    futures = [engine.submit(work) for work in works]
    while engine.tick():
        pass
    return [future.result(timeout=0) for future in futures]


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


def throughput(setting: Setting) -> Iterator[Ratio]:
    """Measure the engine."""
    backbone, sampling, count = setting.backbone, setting.sampling, setting.at_once
    engine, pipeline, texts = Engine(backbone, setting.batch, graphs=setting.graphs), pipeline_of(backbone), prompts()
    shared: dict[int, list[str]] = {}
    steps, rows = sampling.steps, setting.batch * (sampling.steps - 1)
    bare = _bare_calls(setting)

    def start(number: int, stop: int, texts: list[str]) -> list[Generate]:
        return [
            Segment(0, replace(sampling, prompt=text), (f"seed {seed}",), stop, noise=Fresh(seed))
            for seed, text in enumerate(texts, 1000 * (number + 1))
        ]

    def of_round(number: int) -> list[str]:
        return shared.setdefault(number, list(itertools.islice(texts, count)))

    def bare_rows(number: int) -> float:
        bare(steps - 1)
        return rows

    def engine_rows(number: int) -> float:
        # Up to the last step but one, so that nothing is decoded; the bare calls encode nothing, so the prompt is known by then.
        run(engine, start(number, steps - 1, ["a red circle"] * count))
        return rows

    def pipeline_images(number: int) -> float:
        height, width = backbone.info.image
        pipeline(
            of_round(number),
            num_inference_steps=steps,
            guidance_scale=sampling.guidance,
            height=height,
            width=width,
            output_type="np",
        )
        return count

    def engine_images(number: int) -> float:
        run(engine, start(number, steps, of_round(number)))
        return count

    actions = {"bare": bare_rows, "engine": engine_rows, "pipeline": pipeline_images, "images": engine_images}
    taken = setting.alternate(actions)
    yield Ratio("rows per second: engine ÷ bare network calls", of(taken["bare"], taken["engine"]), least=0.97)
    yield Ratio("images per second: engine ÷ diffusers pipeline", of(taken["pipeline"], taken["images"]), least=0.97)


def localization(setting: Setting) -> Iterator[Ratio]:
    """Measure the model's default mask source."""
    backbone, count = setting.backbone, setting.at_once
    sampling, engine = replace(setting.sampling, prompt="a red circle"), Engine(setting.backbone, setting.batch)
    steps, rng = sampling.steps, np.random.default_rng(0)
    clean = State(rng.standard_normal(backbone.info.latent, np.float32), steps, steps)
    lineage = ("seed 0",)
    found = run(engine, [Locate(0, lineage, clean, sampling, backbone.info.defaults.mask)])[0].usage.rows

    def samples(number: int) -> float:
        run(engine, [Segment(0, sampling, (f"seed {seed}",), steps, noise=Fresh(seed)) for seed in range(count)])
        return count

    def localizations(number: int) -> float:
        run(engine, [Locate(0, lineage, clean, sampling, backbone.info.defaults.mask)] * count)
        return count

    taken = setting.alternate({"samples": samples, "localizations": localizations})
    rows = steps * (2 if sampling.guided else 1)
    yield Ratio(f"time: a localization of {found} rows ÷ a sample of {rows}", of(*list(taken.values())[::-1]))


def _bare_calls(setting: Setting) -> Callable[[int], None]:
    """Return a function that makes network calls and nothing else."""
    backbone, batch = setting.backbone, setting.batch
    latents = torch.randn(batch, *backbone.info.latent, device=backbone.device, dtype=backbone.unet.dtype)
    times = torch.full((batch,), 500.0, device=backbone.device)
    text = backbone.stack([backbone.encode_prompts(["a red circle"])[0]] * batch)

    @torch.inference_mode()
    def calls(count: int) -> None:
        for _ in range(count):
            backbone.unet(latents, times, text, return_dict=False)

    return calls
