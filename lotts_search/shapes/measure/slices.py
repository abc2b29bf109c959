"""Slices of damaged renders, among them those where local search should lose: dense damage and a global defect."""

from __future__ import annotations

import numpy as np

from lotts_search.curves.intervals import interval
from lotts_search.shapes.denoisers.data import DENSE_DAMAGE
from lotts_search.shapes.measure.common import JudgedImage, locate, refine, sample
from lotts_search.shapes.measure.localization import damaged_renders
from lotts_search.shapes.world.scene import Split
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bools

SLICES: dict[str, tuple[float, bool]] = {
    "sparse damage": (0.2, False),
    "usual damage": (0.5, False),
    "dense damage": (DENSE_DAMAGE, False),
    "lighting defect": (0.0, True),
}
"""For each slice: the probability that an object is damaged, and whether the image has the lighting defect."""


def gains(pool: Pool, *, images: int = 60, split: Split = "test") -> dict[str, object]:
    """Measure the change of the oracle's quality by one local and by one global trial on renders of each slice.

    ``local`` refines the located region, ``global`` samples a new image for the same prompt. Intervals are 95 %.
    """
    table: dict[str, object] = {}
    for name, (rate, light) in SLICES.items():
        before = damaged_renders(pool, split, images, rate, light=light)
        _, refined, resampled = local_and_global(pool, before)
        table[name] = {
            "quality": float(np.mean([p.verdict.quality for p in before])),
            "local": _change(before, refined),
            "global": _change(before, resampled),
        }
    return {"images": images, "slices": table}


def local_and_global(
    pool: Pool, before: list[JudgedImage], seed: int = 0
) -> tuple[list[Bools], list[JudgedImage], list[JudgedImage]]:
    """Run one local and one global trial on each image, with the model's defaults.

    Returns:
        The located masks, the images refined inside them, and new samples with ``seed`` for the same prompts.
    """
    defaults = pool.info.defaults
    masks = [found.mask for found in locate(pool, before, defaults.mask)]
    refined = refine(pool, before, masks, start=defaults.t0, integrate=defaults.integrate)
    return masks, refined, [group[seed] for group in sample(pool, [p.scene for p in before], seed + 1)]


def _change(before: list[JudgedImage], after: list[JudgedImage]) -> str:
    return str(interval([b.verdict.quality - a.verdict.quality for a, b in zip(before, after, strict=True)]))
