"""The slices on which local search should lose: dense damage, and a defect of the whole image."""

from __future__ import annotations

import numpy as np

from lotts_search.curves.intervals import interval
from lotts_search.shapes.denoisers.data import DENSE_DAMAGE
from lotts_search.shapes.measure.common import JudgedImage, locate, refine, sample
from lotts_search.shapes.measure.localization import damaged_renders
from lotts_search.shapes.world.scene import Split
from lotts_search.work.pool import Pool

SLICES: dict[str, tuple[float, bool]] = {
    "sparse damage": (0.2, False),
    "usual damage": (0.5, False),
    "dense damage": (DENSE_DAMAGE, False),
    "lighting defect": (0.0, True),
}
"""Probability that an object is damaged, and whether the whole image has the lighting defect."""


def gains(pool: Pool, *, images: int = 60, split: Split = "test") -> dict[str, object]:
    """Change of the oracle's quality by one local and by one global trial, from renders of each slice.

    ``local`` refines the located region; ``global`` draws a new image of the same prompt. 95 % intervals.
    """
    defaults = pool.info.defaults
    table: dict[str, object] = {}
    for name, (rate, light) in SLICES.items():
        before = damaged_renders(pool, split, images, rate, light=light)
        masks = [found.mask for found in locate(pool, before, defaults.mask)]
        local = refine(pool, before, masks, start=defaults.t0, integrate=defaults.integrate)
        anew = [group[0] for group in sample(pool, [p.scene for p in before], 1)]
        table[name] = {
            "quality": float(np.mean([p.verdict.quality for p in before])),
            "local": _change(before, local),
            "global": _change(before, anew),
        }
    return {"images": images, "slices": table}


def _change(before: list[JudgedImage], after: list[JudgedImage]) -> str:
    return str(interval([b.verdict.quality - a.verdict.quality for a, b in zip(before, after, strict=True)]))
