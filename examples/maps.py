"""Draw where mask sources find defects, and the region that each selects.

python examples/maps.py
python examples/maps.py "a red fox" --model MODEL --mask attention --mask '{"kind": "windows", "patch": 128, "stride": 64}'

Without a prompt it draws scenes of an embedded model, whose flawed objects are known: they are framed, and each source has
its ROC area over pairs of a flawed and an intact object of one image.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lotts_search.engine.local_pool import LocalPool
from lotts_search.localization.select import upsample
from lotts_search.registry import load_backbone
from lotts_search.shapes.measure.common import JudgedImage, run_all, sample
from lotts_search.shapes.measure.localization import roc
from lotts_search.shapes.world.render import cell_box
from lotts_search.shapes.world.scene import scenes
from lotts_search.work.masks import (
    AttentionMask,
    ConceptMask,
    DisagreementMask,
    ErrorContrastMask,
    MaskSource,
    QualityMask,
    TrajectoryMask,
    WindowMask,
    mask_from_dict,
    mask_to_dict,
    with_settings,
)
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bytes, Fresh, Locate, Located, Sampling, Segment, State


@dataclass
class Sampled:
    """An image with its prompt and its final state; ``flawed`` are the cells of flawed objects, where they are known."""

    prompt: str
    state: State
    image: Bytes
    flawed: list[int]


def main(
    prompt: Annotated[str | None, typer.Argument(help="Prompt of the images.", show_default="scenes of shapes")] = None,
    model: Annotated[str, typer.Option(help="Model: a name, folder or Hub id.")] = "shapes-sd",
    mask: Annotated[list[str] | None, typer.Option(help="Mask source: a kind, or JSON with its settings.")] = None,
    ratio: Annotated[float, typer.Option(help="Share of the image that each source selects.")] = 0.25,
    images: Annotated[int, typer.Option(help="Images to draw.")] = 2,
    measured: Annotated[int, typer.Option(help="Scenes over which ROC areas are measured; 0 = none.")] = 48,
    out: Annotated[Path, typer.Option(help="The PNG or PDF file.")] = Path("out/maps.png"),
) -> None:
    """Draw where mask sources find defects, and the region that each selects."""
    with LocalPool(load_backbone(model), {}) as pool:
        sources = given(mask) if mask else defaults(pool.info)
        judged: list[JudgedImage] = []
        if prompt is None:
            judged = [group[0] for group in sample(pool, scenes("tune", max(measured, 8 * images), 3), 1)]
            shown = [scene_of(one) for one in judged if 1 <= one.verdict.flawed.sum() <= 3][:images]
        else:
            shown = samples(pool, prompt, images)
        areas = {title: roc(pool, judged, source) for title, source in sources.items()} if judged and measured else {}
        found = {title: located(pool, shown, with_settings(one, {"ratio": ratio})) for title, one in sources.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(shown, found, {title: source.rows() for title, source in sources.items()}, areas).savefig(out, dpi=130)
    for title, area in areas.items():
        print(f"AUROC {area:.3f}  {title.replace(chr(10), ', ')}")
    print(f"wrote {out}")


def defaults(info: ModelInfo) -> dict[str, MaskSource]:
    """Return a source of each kind that fits every model, by title."""
    found: dict[str, MaskSource] = {
        "attention\nas in the paper": ConceptMask() if info.family == "flux" else AttentionMask(),
        "error contrast\np+ against p−": ErrorContrastMask(levels=(700,), draws=2),
        "the model's default\n" + mask_to_dict(info.defaults.mask)["kind"]: info.defaults.mask,
        "disagreement\nof trajectories": DisagreementMask(smooth=2.0),
        "trajectory\nlate changes": TrajectoryMask(),
        "quality\nmscn": QualityMask(smooth=2.0),
    }
    if find_spec("brisque"):
        patch = min(64, min(info.image) // 2)
        found[f"quality\nbrisque, windows of {patch}"] = WindowMask(patch=patch, stride=patch // 2)
    return found


def given(masks: list[str]) -> dict[str, MaskSource]:
    """Return the sources of the command line by title."""
    return {text: mask_from_dict(json.loads(text) if text.startswith("{") else text) for text in masks}


def samples(pool: Pool, prompt: str, count: int) -> list[Sampled]:
    """Draw images of a prompt with the seeds 0, 1, …"""
    sampling = Sampling.of(pool.info, prompt)
    work = [Segment(0, sampling, (f"seed {seed}",), sampling.steps, noise=Fresh(seed)) for seed in range(count)]
    results = run_all(pool, work, "sampling")
    return [Sampled(prompt, one.state, one.image, []) for one in results if one.state and one.image is not None]


def scene_of(one: JudgedImage) -> Sampled:
    """Return an image of a scene with its flawed objects."""
    return Sampled(one.scene.caption, one.state, one.image, np.flatnonzero(one.verdict.flawed).tolist())


def located(pool: Pool, images: list[Sampled], source: MaskSource) -> list[Located]:
    """Return the region that a source finds in each image."""
    work = [
        Locate(0, (f"image {number}",), one.state, Sampling.of(pool.info, one.prompt), source, one.image)
        for number, one in enumerate(images)
    ]
    return [result.located for result in run_all(pool, work, "localizing") if result.located is not None]


def draw(
    images: list[Sampled], found: dict[str, list[Located]], rows: dict[str, int], areas: dict[str, float]
) -> Figure:
    """Draw two lines per image: the map of each source, and the region that it selects."""
    columns, lines = 1 + len(found), 2 * len(images)
    figure = Figure(figsize=(1.9 * columns, 1.95 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for number, one in enumerate(images):
        above, below = grid[2 * number], grid[2 * number + 1]
        height, width = one.image.shape[:2]
        pixels = (-0.5, width - 0.5, height - 0.5, -0.5)
        above[0].imshow(one.image, interpolation="nearest")
        below[0].imshow(one.image, interpolation="nearest")
        frame(below[0], one.flawed)
        for column, (title, regions) in enumerate(found.items(), start=1):
            mask = upsample(regions[number].mask, (height, width))[..., None]
            above[column].imshow(regions[number].heat, "inferno", interpolation="nearest", extent=pixels)
            below[column].imshow(np.where(mask, one.image, one.image // 5 + 24), interpolation="nearest")
            frame(above[column], one.flawed)
            frame(below[column], one.flawed)
            if number == 0:
                area = f", AUROC {areas[title]:.2f}" if title in areas else ""
                above[column].set_title(f"{title}\n{rows[title]} rows{area}", fontsize=9)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    grid[0, 0].set_title("image" + ("\nflawed objects framed" if any(one.flawed for one in images) else ""), fontsize=9)
    return figure


def frame(axes: Axes, flawed: list[int]) -> None:
    """Draw frames around flawed objects."""
    for rows, columns in map(cell_box, flawed):
        size = columns.stop - columns.start - 1, rows.stop - rows.start - 1
        axes.add_patch(Rectangle((columns.start, rows.start), *size, fill=False, edgecolor="#2ee6c8", linewidth=1.6))


if __name__ == "__main__":
    typer.run(main)
