"""What a step of ``mosaic`` gains with regions of several kinds, and with other numbers of mosaics, side by side.

    python benchmarks/regions.py [--prompts 3] [--noise 0.03] [--model shapes-sd]

Mosaic searches on tuning prompts give the x0 predictions of the children of all steps. In each step every method chooses
a child for each of its regions, by as many scores as the default, to which noise is added. Its gain is the score without noise
of the image composed of the chosen regions, minus the mean score of the children. The default is 4x4 tiles with 32 mosaics;
differences from it are paired by prompt, with Student's intervals of 95 %.

- best child: the child with the highest score, as in SVDD.
- tiles: n x n of them; the last lines have 4x4 tiles with other numbers of mosaics.
- parts: the connected parts of the two fifths of the image in which the children differ most, and the rest of it.
- hierarchy: half of the mosaics for 2x2 tiles, the other half for 4x4 inside those whose gain is beyond the noise.
- accepted: the composed image is scored itself, in place of a mosaic, and the best child stays where that score is lower.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage

from lotts_search import asearch
from lotts_search.arithmetic.effects import LENGTHS, design, estimate
from lotts_search.curves.intervals import interval
from lotts_search.engine.local_pool import LocalPool
from lotts_search.registry import load_backbone, load_verifier
from lotts_search.shapes.world.scene import scenes
from lotts_search.work.mosaics import upsample
from lotts_search.work.requests import ScoreMosaics, Work

Array = Any
Judge = Callable[[Array], Array]
"""Returns the noisy scores [K] of images [K, h, w, 3]."""
Method = Callable[[Array, Judge, np.random.Generator], Array]
"""Returns the image [h, w, 3] that it composes of children [M, h, w, 3]."""


class Recording(LocalPool):
    """A pool that keeps the children of each step: the images that mosaics are made of."""

    steps: list[tuple[str, Array]]

    def submit(self, work: Work) -> Any:
        if isinstance(work, ScoreMosaics):
            self.steps.append((work.prompt, work.images))
        return super().submit(work)


def put(children: Array, choices: Array, regions: Array) -> Array:
    """Return images [K, h, w, 3] that show in region r [h, w] what child ``choices[k, …]`` shows, with regions in order."""
    height, width = regions.shape
    cells = choices.reshape(len(choices), -1)[:, regions]
    return children[cells, np.arange(height)[:, None], np.arange(width)]


def tiles(side: int, size: tuple[int, int]) -> Array:
    """Return the number of each pixel's tile [h, w]."""
    return upsample(np.arange(side * side).reshape(side, side), size)


def alone(count: int, shape: tuple[int, int]) -> Array:
    """Return the choices of the children alone [M, *shape]."""
    return np.stack([np.full(shape, number) for number in range(count)])


def by_tiles(side: int, mosaics: int, children: Array, judge: Judge, rng: np.random.Generator) -> Array:
    shape, regions = (side, side), tiles(side, children.shape[1:3])
    choices = np.concatenate([alone(len(children), shape), design(len(children), shape, mosaics, rng)])
    best = estimate(choices, judge(put(children, choices, regions)), len(children)).best
    return put(children, best[None], regions)[0]


def by_parts(mosaics: int, children: Array, judge: Judge, rng: np.random.Generator) -> Array:
    heat = ndimage.gaussian_filter(children.astype(float).var(0).sum(2), 2)
    labels, count = ndimage.label(heat >= np.quantile(heat, 0.6))
    sizes = ndimage.sum_labels(np.ones_like(heat), labels, np.arange(1, count + 1))
    large = 1 + np.flatnonzero(sizes >= 24)  # pixels, of an image with 64 x 64
    regions = np.zeros(labels.shape, int)
    for number, label in enumerate(large, 1):
        regions[labels == label] = number
    shape = (1, len(large) + 1)
    choices = np.concatenate([alone(len(children), shape), design(len(children), shape, mosaics, rng)])
    # These lengths need no distances.
    best = estimate(choices, judge(put(children, choices, regions)), len(children), (0.0, np.inf)).best
    return put(children, best[None], regions)[0]


def by_hierarchy(mosaics: int, children: Array, judge: Judge, rng: np.random.Generator) -> Array:
    count, regions = len(children), tiles(4, children.shape[1:3])

    def finer(choices: Array) -> Array:
        return choices.repeat(2, axis=-2).repeat(2, axis=-1)

    coarse = np.concatenate([alone(count, (2, 2)), design(count, (2, 2), mosaics // 2, rng)])
    scores = judge(put(children, finer(coarse), regions))
    effects = estimate(coarse, scores, count)
    fitted = np.take_along_axis(effects.mean[None], coarse[..., None], 3).sum((1, 2, 3))
    noise = np.std(scores - fitted) * np.sqrt(2 * count / mosaics)
    best = finer(effects.best)
    split = finer(effects.mean.max(2) - effects.mean.mean(2) > noise)
    fine = np.where(split, design(count, (4, 4), mosaics - mosaics // 2, rng), best)
    scores = np.concatenate([scores, judge(put(children, fine, regions))])
    found = estimate(np.concatenate([finer(coarse), fine]), scores, count, LENGTHS).best
    return put(children, np.where(split, found, best)[None], regions)[0]


def by_acceptance(mosaics: int, children: Array, judge: Judge, rng: np.random.Generator) -> Array:
    scores: list[Array] = []

    def keep(images: Array) -> Array:
        scores.append(judge(images))
        return scores[-1]

    image = by_tiles(4, mosaics - 1, children, keep, rng)
    first = scores[0][: len(children)]
    return image if judge(image[None])[0] >= first.max() else children[first.argmax()]


METHODS: dict[str, Method] = {
    "tiles 4x4 (default)": partial(by_tiles, 4, 32),
    "tiles 2x2": partial(by_tiles, 2, 32),
    "tiles 3x3": partial(by_tiles, 3, 32),
    "parts": partial(by_parts, 32),
    "hierarchy": partial(by_hierarchy, 32),
    "accepted": partial(by_acceptance, 32),
    "16 mosaics": partial(by_tiles, 4, 16),
    "24 mosaics": partial(by_tiles, 4, 24),
    "48 mosaics": partial(by_tiles, 4, 48),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-sd", help="an embedded model")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--noise", type=float, default=0.03, help="standard deviation of the noise on scores")
    options = parser.parse_args()
    name = "shapes-reward:dtype=bfloat16"
    verifier, backbone = load_verifier(name), load_backbone(options.model, dtype="bfloat16", device="cpu")
    prompts = [scene.caption for scene in scenes("tune", options.prompts, 12)]

    async def searches(pool: LocalPool) -> None:
        await asyncio.gather(*(asearch(prompt, pool=pool, strategy="mosaic", nfe=37) for prompt in prompts))

    with Recording(backbone, {name: verifier}, threads=1) as pool:
        pool.steps = []
        asyncio.run(searches(pool))
    gains: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, (prompt, children) in enumerate(pool.steps):

        def score(images: Array, prompt: str = prompt) -> Array:
            return np.concatenate(
                [verifier.score([prompt] * len(part), part) for part in np.split(images, range(16, len(images), 16))]
            )

        exact = score(children)
        for place, (method, compose) in enumerate({"best child": None, **METHODS}.items()):
            noise = np.random.default_rng([number, place])

            def judge(images: Array, noise: np.random.Generator = noise, score: Judge = score) -> Array:
                return score(images) + options.noise * noise.standard_normal(len(images))

            image = compose(children, judge, noise) if compose else children[judge(children).argmax()]
            gains[method][prompt].append(float(score(image[None])[0] - exact.mean()))
    print(f"{len(pool.steps)} steps of {options.prompts} searches, noise {options.noise:g}")
    means = {method: np.array([np.mean(found[prompt]) for prompt in prompts]) for method, found in gains.items()}
    for method, mean in means.items():
        less = interval(mean - means["tiles 4x4 (default)"])
        print(f"{method:20} gain {mean.mean():.4f}  minus default {less.mean:+.4f} [{less.low:+.4f}, {less.high:+.4f}]")


if __name__ == "__main__":
    main()
