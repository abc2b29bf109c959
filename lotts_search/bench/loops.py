"""Whole searches against what people write today: a loop over a diffusers pipeline and a verifier, which keeps the best image.

The loop calls the pipeline once per image, as most scripts do, or with as many images of the prompt as the engine has in a call.
Pipeline, pool and verifier are loaded before. Times are per NFE, since a search may spend a little less than its budget.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lotts_search.api import asearch
from lotts_search.bench.setting import Ratio, Setting, of, prompts
from lotts_search.bench.throughput import pipeline_of
from lotts_search.core.result import SearchResult
from lotts_search.engine.local_pool import LocalPool
from lotts_search.registry import load_verifier
from lotts_search.verifiers.base import Verifier
from lotts_search.work.requests import Bytes

IMAGES = 9
"""Images of a loop; a search gets as many NFE."""
AT_ONCE = 4
"""Searches for several prompts at once."""
STRATEGIES = "best-of-n", "lotts", "adaptive-mosaic"
LASTING = 5
"""Searches with each strategy of the mix."""
MIX = "best-of-n", "lotts", "adaptive-mosaic", "particle", "svdd", "beam-in-mask"


def best_of(pipeline: Any, verifier: Verifier, prompt: str, images: int, batch: int, **how: Any) -> Bytes:
    """Return the best of some images [h, w, 3] uint8, in calls of the pipeline for up to ``batch`` of them."""
    best, image = -np.inf, np.empty(0, np.uint8)
    for first in range(0, images, batch):
        seeds = range(first, min(first + batch, images))
        found = pipeline(
            prompt,
            num_images_per_prompt=len(seeds),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
            **how,
        ).images
        pixels = (found * 255).round().astype(np.uint8)
        scores = verifier.score([prompt] * len(seeds), pixels)
        if scores.max() > best:
            best, image = float(scores.max()), pixels[scores.argmax()]
    return image


def search_all(texts: list[str], **how: Any) -> list[SearchResult]:
    """Search for several prompts at once, with the arguments of :func:`~lotts_search.api.asearch`."""

    async def everything() -> list[SearchResult]:
        return await asyncio.gather(*(asearch(text, **how) for text in texts))

    return asyncio.run(everything())


def one_search(setting: Setting) -> Iterator[Ratio]:
    """Measure a search alone, with as many rows in a call as the batched loop has: unused ones are computed, too."""
    rows = setting.batch // setting.at_once
    return _against_loops(setting, 1, min(setting.batch, IMAGES * rows), "search with")


def many_searches(setting: Setting) -> Iterator[Ratio]:
    """Measure searches for several prompts at once, which share calls."""
    return _against_loops(setting, AT_ONCE, setting.batch, f"{AT_ONCE} searches at once with")


def _against_loops(setting: Setting, count: int, rows: int, name: str) -> Iterator[Ratio]:
    """Compare searches with loops at equal NFE, verifier and decoding included.

    Args:
        count: number of searches at once.
        rows: network rows in a call of the engine.
        name: of the searches, before their strategy.
    """
    sampling, (height, width) = setting.sampling, setting.backbone.info.image
    verifier, pipeline = load_verifier(setting.verifier), pipeline_of(setting.backbone)
    how = {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance, "height": height, "width": width}
    texts, nfe = list(itertools.islice(prompts(), count * (setting.rounds + 1))), IMAGES * sampling.steps

    def loop(batch: int) -> Callable[[int], float]:
        def go(number: int) -> float:
            best_of(pipeline, verifier, texts[number + 1], IMAGES, batch, **how)
            return nfe

        return go

    def searching(strategy: str) -> Callable[[int], float]:
        def go(number: int) -> float:
            some = texts[count * (number + 1) : count * (number + 2)]
            return sum(found.ledger.nfe for found in search_all(some, strategy=strategy, nfe=nfe, pool=pool))

        return go

    with LocalPool(setting.backbone, {setting.verifier: verifier}, rows, setting.threads) as pool:
        loops = {"loop of single images": loop(1), "batched loop": loop(min(IMAGES, setting.at_once))}
        taken = setting.alternate(loops | {strategy: searching(strategy) for strategy in STRATEGIES})
    for strategy in STRATEGIES:
        for other in loops:
            most = 0.8 if strategy == "best-of-n" else None
            yield Ratio(f"time per NFE: {name} {strategy} ÷ {other}", of(taken[strategy], taken[other]), most=most)


def filling(setting: Setting) -> Iterator[Ratio]:
    """Measure how full the network calls are under a lasting mix of strategies: rows of searches ÷ computed rows, from the end of the
    first search to the beginning of the last one, with as many in flight. Latents of padding are 0."""
    used = computed = 0
    window: list[tuple[int, int]] = []
    verifiers = {setting.verifier: load_verifier(setting.verifier)}
    strategies = MIX * LASTING

    def count(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal used, computed
        used, computed = used + int(given[0].flatten(1).any(1).sum()), computed + len(given[0])

    async def all_searches(pool: LocalPool) -> None:
        waiting, texts = list(strategies), prompts()

        async def one_after_the_other() -> None:
            while waiting:
                strategy, nfe = waiting.pop(), IMAGES * setting.sampling.steps
                if not waiting:
                    window.append((used, computed))
                await asearch(next(texts), strategy=strategy, nfe=nfe, pool=pool)
                if not window:
                    window.append((used, computed))

        await asyncio.gather(*(one_after_the_other() for _ in range(2 * len(MIX))))

    with (
        setting.backbone.unet.register_forward_pre_hook(count),
        LocalPool(setting.backbone, verifiers, setting.batch, setting.threads) as pool,
    ):
        asyncio.run(all_searches(pool))
    (used_before, computed_before), (used_after, computed_after) = window
    name = f"rows: of searches ÷ computed, {2 * len(MIX)} searches in flight with {len(MIX)} strategies"
    yield Ratio(name, [(used_after - used_before) / (computed_after - computed_before)], least=0.9)
