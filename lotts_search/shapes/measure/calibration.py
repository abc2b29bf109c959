"""Calibration of a shapes model: the difficulty of its world, and what a refinement repairs and harms."""

from __future__ import annotations

import numpy as np

from lotts_search.curves.intervals import interval
from lotts_search.curves.order import best_of
from lotts_search.shapes.measure.common import JudgedImage, cell_means, locate, refine, sample, scores
from lotts_search.shapes.measure.statistics import within_group_spearman
from lotts_search.shapes.world.scene import scenes
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bools

SIZES = (1, 2, 4, 8, 16, 32, 64)


def best_of_n(pool: Pool, *, prompts: int = 100, seed: int = 0, verifier: str = "shapes-reward") -> dict[str, object]:
    """Measure the share of perfect single samples and the oracle's quality of Best-of-N on tuning prompts.

    Each prompt has one pool of 64 samples. The curve is its order-statistics estimate, with ``verifier`` selecting the
    images. Intervals are 95 % over prompts.
    """
    pools = sample(pool, scenes("tune", prompts, seed), SIZES[-1])
    flat = [p for group in pools for p in group]
    score = scores(pool, flat, verifier).reshape(prompts, -1)
    quality = np.array([p.verdict.quality for p in flat]).reshape(prompts, -1)
    perfect = np.array([p.verdict.perfect for p in flat], dtype=np.float64).reshape(prompts, -1)
    curve = {n: [best_of(s, q, n) for s, q in zip(score, quality, strict=True)] for n in SIZES}
    ideal = {n: [best_of(q, q, n) for q in quality] for n in SIZES}
    wins = {n: [best_of(s, p, n) for s, p in zip(score, perfect, strict=True)] for n in SIZES}
    return {
        "prompts": prompts,
        "perfect_share": str(interval(perfect.mean(axis=1))),
        "perfect_one_in": float(1 / max(perfect.mean(), 1e-9)),
        "objects": object_shares(flat),
        "best_of_n_quality": {n: str(interval(curve[n])) for n in SIZES},
        "best_of_n_perfect": {n: float(np.mean(wins[n])) for n in SIZES},
        "best_of_n_quality_if_the_oracle_chose": {n: float(np.mean(ideal[n])) for n in SIZES},
        "rise_16_to_64": str(interval(np.subtract(curve[64], curve[16]))),
        "spearman_within_prompt": within_group_spearman(list(score), list(quality)),
    }


def object_shares(images: list[JudgedImage]) -> dict[str, float]:
    """Return the share of the expected objects with the right colour and shape, and the damaged share of these."""
    expected = np.stack([p.verdict.expected for p in images])
    right = np.stack([p.verdict.right for p in images])[expected]
    damaged = np.stack([p.verdict.damaged for p in images])[expected]
    return {"right": float(right.mean()), "damaged_of_right": float(damaged[right].mean())}


def repairs(pool: Pool, *, prompts: int = 100, seeds: int = 2, seed: int = 1) -> dict[str, object]:
    """Measure the repair and harm probabilities of one refinement by its starting step, on tuning prompts.

    Only objects with the right colour and shape count. ``repair``: a damaged object is neither damaged nor wrong
    afterwards. ``harm``: an intact object is damaged or wrong afterwards. ``whole`` refines the whole image. ``mask``
    refines the region that the model's default mask source finds, counted over all objects, and as ``mask_selected``
    over those at least half inside the mask.
    """
    images = [p for group in sample(pool, scenes("tune", prompts, seed), seeds) for p in group]
    defaults = pool.info.defaults
    everything = np.ones(pool.info.latent[1:], dtype=bool)
    masks = [found.mask for found in locate(pool, images, defaults.mask)]
    table: dict[str, object] = {}
    for start in range(2, defaults.steps, 2):
        whole = refine(pool, images, [everything] * len(images), start=start, integrate=defaults.integrate)
        local = refine(pool, images, masks, start=start, integrate=defaults.integrate)
        table[str(start)] = {
            "whole": _rates(images, whole),
            "mask": _rates(images, local),
            "mask_selected": _rates(images, local, masks),
        }
    return {"images": len(images), "steps": defaults.steps, "by_start": table}


def _rates(before: list[JudgedImage], after: list[JudgedImage], masks: list[Bools] | None = None) -> dict[str, float]:
    damaged, intact, repaired, harmed, change = 0, 0, 0, 0, 0.0
    for index, (a, b) in enumerate(zip(before, after, strict=True)):
        counted = a.verdict.expected & a.verdict.right
        if masks is not None:
            counted = counted & (cell_means(masks[index]) >= 0.5)
        fine = b.verdict.right & ~b.verdict.damaged
        broken = counted & a.verdict.damaged
        whole = counted & ~a.verdict.damaged
        damaged, repaired = damaged + int(broken.sum()), repaired + int((broken & fine).sum())
        intact, harmed = intact + int(whole.sum()), harmed + int((whole & ~fine).sum())
        change += b.verdict.quality - a.verdict.quality
    return {
        "repair": repaired / max(1, damaged),
        "harm": harmed / max(1, intact),
        "damaged": damaged,
        "intact": intact,
        "quality_change": change / len(before),
    }
