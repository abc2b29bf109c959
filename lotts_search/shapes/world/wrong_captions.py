"""Scenes whose captions are wrong about one object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lotts_search.shapes.world.scene import COLOURS, SHAPES, Scene


def one_wrong(scene: Scene, rng: np.random.Generator) -> tuple[Scene, int]:
    """Return the scene with another colour or another shape for one of its objects, and the cell of that object."""
    which = int(rng.integers(len(scene.objects)))
    wrong = scene.objects[which]
    if rng.random() < 0.5:
        wrong = replace(wrong, colour=_other(list(COLOURS), wrong.colour, rng))
    else:
        wrong = replace(wrong, shape=_other(list(SHAPES), wrong.shape, rng))
    objects = (*scene.objects[:which], wrong, *scene.objects[which + 1 :])
    return replace(scene, objects=objects), wrong.cell


def _other(names: list[str], name: str, rng: np.random.Generator) -> str:
    rest = [n for n in names if n != name]
    return rest[rng.integers(len(rest))]
