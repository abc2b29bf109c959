"""How well a mask source finds the flawed objects: the ROC area over the objects within an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lotts_search.shapes.measure.common import JudgedImage, judged, locate, object_heat, run_all, sample
from lotts_search.shapes.measure.statistics import pair_area
from lotts_search.shapes.world.render import render, to_uint8
from lotts_search.shapes.world.scene import Split, scenes
from lotts_search.work.masks import (
    AttentionMask,
    ConceptMask,
    DisagreementMask,
    ErrorContrastMask,
    FusionMask,
    MaskSource,
    QualityMask,
    RandomMask,
    TrajectoryMask,
)
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Encode


def damaged_renders(
    pool: Pool, split: Split, count: int, rate: float = 0.4, seed: int = 2, *, light: bool = False
) -> list[JudgedImage]:
    """Render scenes with independently damaged objects and encode them; verdicts are about the decoded images.

    Args:
        pool: the pool that encodes the renders.
        split, count, seed: which scenes.
        rate: probability that an object is damaged.
        light: apply the lighting defect.
    """
    rng = np.random.default_rng([seed, count])
    chosen = scenes(split, count, seed)
    images = [to_uint8(render(s, rng, damage=rate, light=light).image) for s in chosen]
    results = run_all(pool, [Encode(image, pool.info.defaults.steps) for image in images], "encoding renders")
    return judged(results, chosen)


def roc(pool: Pool, images: list[JudgedImage], source: MaskSource) -> float:
    """Return the ROC area of ``source`` over pairs of a flawed and an intact object of the same image."""
    found = locate(pool, images, source)
    heats = [object_heat(f.heat, p.scene) for p, f in zip(images, found, strict=True)]
    flawed = [p.verdict.flawed[[o.cell for o in p.scene.objects]] for p in images]
    return pair_area(heats, flawed)[0]


LIFT = ErrorContrastMask(
    levels=(600,), draws=2, smooth=2.0, high="{}", low="", relative=True, foreground=0.2
)  # fmt: skip
"""How much the prompt helps to explain a region: the relative error contrast between it and the empty prompt."""


def candidates(family: str) -> dict[str, MaskSource]:
    """Return the settings among which tuning chooses, by name."""
    found: dict[str, MaskSource] = {}
    for grid in (8,) if family == "flux" else (16, 8):
        for level in (0, 150, 300, 450, 600, 750):
            for propagate in (False, True):
                for word in (False, True):
                    name = f"attention grid {grid} level {level}{' word' * word}{' propagated' * propagate}"
                    found[name] = attention_of(
                        family, grid, alpha=0.0, level=level, noised=level > 0, propagate=propagate, word_only=word,
                        original=False,
                    )  # fmt: skip
    for level in (150, 400, 550, 600, 650, 700, 800, 900):
        found[f"error, p+ against p-, level {level}"] = ErrorContrastMask(levels=(level,), draws=2)
        found[f"error, prompt against none, level {level}"] = replace(LIFT, levels=(level,))
    for smooth in (1.0, 1.5):
        found[f"error, prompt against none, smooth {smooth}"] = replace(LIFT, smooth=smooth)
    for foreground in (0.0, 0.1, 0.4):
        found[f"error, prompt against none, foreground {foreground}"] = replace(LIFT, foreground=foreground)
    for draws in (1, 4):
        found[f"error, prompt against none, {draws} draws"] = replace(LIFT, draws=draws)
    for kind in ("mscn", "sharpness", "grain"):
        for smooth in (1.0, 2.0):
            found[f"quality {kind}, smooth {smooth}"] = QualityMask(map=kind, smooth=smooth)
    for smooth in (0.0, 1.0, 2.0):
        found[f"trajectory, smooth {smooth}"] = TrajectoryMask(smooth=smooth)
    for level in (200, 400, 500, 600, 800):
        found[f"disagreement, level {level}, 4 draws"] = DisagreementMask(levels=(level,), smooth=2.0)
    found["disagreement, level 500, 8 draws"] = DisagreementMask(draws=8, smooth=2.0)
    for draws in (2, 4):
        found[f"disagreement, levels 400 and 600, {draws} draws"] = DisagreementMask(
            levels=(400, 600), draws=draws, smooth=2.0
        )
    return found | fusions()


def fusions() -> dict[str, MaskSource]:
    """Return fusions of the best single source with the others, by name."""
    quality, apart = QualityMask(smooth=2.0), DisagreementMask(smooth=2.0)
    return {
        "fusion: error contrast, quality": FusionMask(sources=(LIFT, quality), weights=(2, 1)),
        "fusion: error contrast, disagreement": FusionMask(sources=(LIFT, apart), weights=(2, 1)),
        "fusion: error contrast, disagreement, alike": FusionMask(sources=(LIFT, apart)),
        "fusion: error contrast, disagreement, by range": FusionMask(sources=(LIFT, apart), scale="range"),
        "fusion: error contrast, quality, disagreement": FusionMask(sources=(LIFT, quality, apart), weights=(2, 1, 1)),
        "fusion: quality, disagreement": FusionMask(sources=(quality, apart)),
        "fusion: error contrast, trajectory": with_trajectory(LIFT),
        "fusion: error contrast of one draw, trajectory": with_trajectory(replace(LIFT, draws=1)),
    }


def with_trajectory(source: MaskSource) -> FusionMask:
    """Return a source fused with the trajectory's map, which costs nothing."""
    return FusionMask(sources=(source, TrajectoryMask()), weights=(2, 1))


def tune(pool: Pool, *, images: int = 64, only: str = "") -> dict[str, object]:
    """Measure the ROC area of each candidate whose name contains ``only``, on renders and samples of tuning scenes."""
    renders = damaged_renders(pool, "tune", images)
    generated = [group[0] for group in sample(pool, scenes("tune", images, 3), 1)]
    sources = {name: source for name, source in candidates(pool.info.family).items() if only in name}
    return {"images": images, "roc": _areas(pool, renders, generated, sources)}


def _areas(
    pool: Pool, renders: list[JudgedImage], generated: list[JudgedImage], sources: dict[str, MaskSource]
) -> dict[str, dict[str, float]]:
    """Return ROC areas by name; a source under several names, such as a model's default, is measured once. No trajectory
    made a render, so sources that need one are measured on samples alone."""
    areas = {}
    for source in dict.fromkeys(sources.values()):
        areas[source] = {"renders": roc(pool, renders, source)} if source.untraced() is source else {}
        areas[source]["generated"] = roc(pool, generated, source)
    return {name: areas[source] for name, source in sources.items()}


def attention_of(family: str, grid: int = 16, **settings: Any) -> AttentionMask | ConceptMask:
    """Return the paper's mask for a family; FLUX's attention has only one grid."""
    return ConceptMask(**settings) if family == "flux" else AttentionMask(grid=grid, **settings)


def ablations(attention: AttentionMask | ConceptMask) -> dict[str, MaskSource]:
    """Return the tuned attention mask, its ablations, the paper's settings, and the other sources, by name."""
    contrast, paper = ErrorContrastMask(levels=(700,), draws=2), type(attention)()
    return {
        "attention (tuned)": attention,
        "attention, w/o A_ori": replace(attention, original=False),
        "attention, w/o A_con": replace(attention, contrast=False),
        "attention, w/o propagation": replace(attention, propagate=False),
        "attention, the paper's settings (last timestep)": paper,
        "attention, the paper's settings w/o A_ori": replace(paper, original=False),
        "attention, the paper's settings w/o A_con": replace(paper, contrast=False),
        "attention, the paper's settings w/o propagation": replace(paper, propagate=False),
        "error contrast, p+ against p-": contrast,
        "error contrast, p+ against p-, relative": replace(contrast, relative=True),
        "error contrast, prompt against none, relative": LIFT,
        "error contrast, prompt against none, relative, one draw": replace(LIFT, draws=1),
        "error contrast, prompt against none, difference": replace(LIFT, relative=False, levels=(900,)),
        "quality, mscn": QualityMask(smooth=2.0),
        "quality, sharpness": QualityMask(map="sharpness", smooth=2.0),
        "quality, grain": QualityMask(map="grain", smooth=2.0),
        "disagreement, level 500, 4 draws": DisagreementMask(smooth=2.0),
        "trajectory": TrajectoryMask(),
        **fusions(),
        "random": RandomMask(),
    }


def test(pool: Pool, attention: AttentionMask | ConceptMask, *, images: int = 200) -> dict[str, object]:
    """Measure ROC areas of the default mask source and all ablations on renders and samples of test scenes."""
    renders = damaged_renders(pool, "test", images)
    generated = [group[0] for group in sample(pool, scenes("test", images, 4), 1)]
    sources = {"the model's default": pool.info.defaults.mask} | ablations(attention)
    return {"images": images, "roc": _areas(pool, renders, generated, sources)}
