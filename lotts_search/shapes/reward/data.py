"""Training images of ``shapes-reward``: damaged and deformed renders with the true quality of every cell.

Diffusion models make other mistakes than the four kinds of damage: objects half-way between two, fragments where there
should be no object, wobbly outlines. Therefore cells are also blended, partly replaced and warped here, and the changed
share of each cell is known by construction. The oracle is not involved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lotts_search.shapes.world.render import SIZE, Pose, cell_box, cell_grid, coverage, render, to_uint8
from lotts_search.shapes.world.scene import BACKGROUNDS, COLOURS, SHAPES, Object, Scene, random_scene
from lotts_search.work.requests import Bools, Bytes, Floats

AREAS: dict[str, float] = {shape: float(coverage(shape, Pose(), *cell_grid(4)).sum()) for shape in SHAPES}
"""The number of pixels that each shape covers."""
_DAMAGE_RATES = (0.0, 0.16, 0.4, 0.7)
_MORPH_RATES = (0.0, 0.25, 0.6)
_LIGHT_SHARE = 0.04
_CHANGED = 0.12
"""A pixel counts as changed if a channel leaves the range of its neighbourhood by more than this."""


@dataclass
class Truths:
    """Images with their ground truth.

    Attributes:
        images: [N, 64, 64, 3] uint8.
        scenes: the scene that each image should show.
        quality: [N, 9] float32 in 0..1, the correct share of each cell.
    """

    images: Bytes
    scenes: list[Scene]
    quality: Floats


def truths(count: int, seed: int, describe: Callable[[str], None] = print) -> Truths:
    """Render ``count`` training images of scenes of the train split: a pure function of ``count`` and ``seed``."""
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    quality = np.empty((count, 9), dtype=np.float32)
    wanted: list[Scene] = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        wanted.append(random_scene(rng, "train", (4, 9)))
        image, quality[i] = _image(wanted[-1], rng)
        images[i] = to_uint8(image)
        if i % 2000 == 1999:
            describe(f"rendered {i + 1} of {count} images")
    return Truths(images, wanted, quality)


def _image(scene: Scene, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return an image of a scene and the quality of each cell [9]."""
    light = rng.random() < _LIGHT_SHARE
    poses, damage = int(rng.integers(2**31)), float(rng.choice(_DAMAGE_RATES))
    drawn = render(scene, np.random.default_rng(poses), damage=damage, light=light)
    region = drawn.region
    if light:
        evenly_lit = render(scene, np.random.default_rng(poses), damage=damage)
        region = region | (np.abs(drawn.image - evenly_lit.image).max(axis=-1) > 2 * _CHANGED)
    image, replaced = _morph(drawn.image, scene, rng)
    region = region | _beyond_neighbourhood(image, drawn.image)
    objects = {o.cell: o for o in scene.objects}
    quality = np.empty(9, dtype=np.float32)
    for cell in range(9):
        changed = float(region[cell_box(cell)].sum())
        if cell in objects:
            identity = np.clip(1 - (replaced[cell] - 0.15) / 0.35, 0, 1)
            quality[cell] = identity * np.clip(1 - changed / AREAS[objects[cell].shape], 0, 1)
        else:
            quality[cell] = np.clip(1 - (changed - 12) / 40, 0, 1)
    return image, quality


def _beyond_neighbourhood(image: Floats, reference: Floats) -> Bools:
    """Return which pixels are outside the range of colours in the reference's 3x3 neighbourhood [64, 64]."""
    low = ndimage.minimum_filter(reference, size=(3, 3, 1), mode="nearest")
    high = ndimage.maximum_filter(reference, size=(3, 3, 1), mode="nearest")
    outside = np.maximum(low - image, image - high).max(axis=-1) > _CHANGED
    nearby = ndimage.binary_dilation(outside, np.ones((3, 3), dtype=bool))
    return np.asarray(nearby & (np.abs(image - reference).max(axis=-1) > _CHANGED), dtype=bool)


def _morph(image: Floats, scene: Scene, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Blend, partly replace or warp some cells; return the image and the replaced share of each cell [9], 0..1."""
    rate = float(rng.choice(_MORPH_RATES))
    chosen = rng.random(9) < rate
    replaced = np.zeros(9, dtype=np.float32)
    if not chosen.any():
        return image, replaced
    other = render(_other_scene(scene, rng), rng).image
    field = _smooth(rng, 1)[0]
    warped = _warp(image, rng)
    out = image.copy()
    for cell in np.flatnonzero(chosen):
        box = cell_box(int(cell))
        kind = rng.random()
        if kind < 0.2:
            out[box] = warped[box]
            continue
        if kind < 0.5:
            weight = np.full(out[box].shape[:2], rng.uniform(0.05, 1), dtype=np.float32)
        else:
            weight = (0.5 + 3 * (field[box] - rng.normal(0, 1))).clip(0, 1).astype(np.float32)
        # Pixels that are the same in both images do not count as replaced.
        differs = np.abs(other[box] - image[box]).max(axis=-1) > _CHANGED
        replaced[cell] = (weight * differs).sum() / max(1, differs.sum())
        out[box] = (1 - weight[..., None]) * image[box] + weight[..., None] * other[box]
    return out, replaced


def _other_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a scene on the same background with something else, or nothing, in each cell."""
    objects = {o.cell: o for o in scene.objects}
    colours = list(COLOURS)
    others = []
    for cell in range(9):
        there = objects.get(cell)
        if there is not None and rng.random() < 0.2:
            continue
        new = Object(cell, colours[rng.integers(len(colours))], SHAPES[rng.integers(len(SHAPES))])
        if there is not None and rng.random() < 0.5:
            new = Object(cell, there.colour, new.shape) if rng.random() < 0.7 else Object(cell, new.colour, there.shape)
        if new != there:
            others.append(new)
    return Scene(tuple(others), scene.background)


def _smooth(rng: np.random.Generator, count: int) -> Floats:
    """Return ``count`` smooth random fields [count, 64, 64] of unit variance."""
    fields = ndimage.gaussian_filter(rng.standard_normal((count, SIZE, SIZE)), (0, 3.5, 3.5))
    return np.asarray(fields / fields.std(axis=(1, 2), keepdims=True), dtype=np.float32)


def _warp(image: Floats, rng: np.random.Generator) -> Floats:
    """Return the image with wobbly outlines."""
    shift = _smooth(rng, 2) * rng.uniform(0.3, 2.0)
    where = np.mgrid[:SIZE, :SIZE] + shift
    channels = [ndimage.map_coordinates(image[..., c], where, order=1, mode="nearest") for c in range(3)]
    return np.asarray(np.stack(channels, axis=-1), dtype=np.float32)


def altered(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Bools, bool]:
    """Return a scene of the train split that describes an image of ``scene`` correctly except for some cells.

    Returns:
        The scene, which of its cells are still right [9], and whether its background is still right.
    """
    while True:
        objects: dict[int, Object] = {o.cell: o for o in scene.objects}
        right = np.ones(9, dtype=bool)
        for cell in rng.choice(9, size=int(rng.integers(0, 4)), replace=False).tolist():
            there = objects.pop(cell, None)
            new = Object(cell, str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)))
            if there is None:
                objects[cell] = new
            elif rng.random() < 0.4:
                objects[cell] = Object(cell, new.colour, there.shape)
            elif rng.random() < 0.75:
                objects[cell] = Object(cell, there.colour, new.shape)
            right[cell] = objects.get(cell) == there
        ground = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.25 else scene.background
        result = Scene(tuple(objects[c] for c in sorted(objects)), ground)
        if objects and result.split == "train":
            return result, right, ground == scene.background
