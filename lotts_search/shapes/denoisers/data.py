"""Training images of the denoisers: renders with independent damage and noisy quality captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lotts_search.shapes.world.render import Render, render
from lotts_search.shapes.world.scene import MAX_OBJECTS, MIN_OBJECTS, PLACES, Scene, Split, random_scene
from lotts_search.work.masks import BAD, GOOD, HIGH_QUALITY, LOW_QUALITY

HIGH, LOW = HIGH_QUALITY, LOW_QUALITY
"""The paper's quality templates."""
TEMPLATES = ((HIGH, LOW), (GOOD, BAD))
"""The paper's two pairs of templates, both used in training captions."""

DAMAGE, MILD_DAMAGE = (0.38, 0.74), (0.16, 0.55)
"""Probabilities that an object is damaged in a good and in a bad image: in the final world, and in the milder world of
the first training stages."""
DENSE_DAMAGE = 0.95
"""Probability that an object is damaged on the slice of dense damage."""
WORD_SHARE, WORD_RIGHT = 0.5, 0.7
"""Share of the captions that mention quality, and how often a quality word about the whole image is right."""
OBJECT_SHARE, OBJECT_WORDS, OBJECT_RIGHT = 0.5, 0.5, 0.85
"""Share of these captions that describe single objects instead of the whole image, the share of the objects that they
describe, and how often they are right. Without them a quality word would carry little information about a single place,
and attention to it none."""
DENSE_SHARE, LIGHT_SHARE = 0.03, 0.04
"""Shares of the training images that belong to the two slices: dense damage, and the global lighting defect."""


@dataclass
class Example:
    """A training image with its scene and its caption, which may have a quality word."""

    scene: Scene
    caption: str
    render: Render


def example(
    rng: np.random.Generator,
    split: Split = "train",
    objects: tuple[int, int] = (MIN_OBJECTS, MAX_OBJECTS),
    damage: tuple[float, float] = DAMAGE,
) -> Example:
    """Draw one training example.

    An image is good or bad with equal probability, and its objects are damaged independently at the rate of this class.
    The caption may name the class by a quality template, which is right in ``WORD_RIGHT`` of the cases, or call single
    objects good or bad, which is right in ``OBJECT_RIGHT`` of the cases.

    Args:
        rng: source of all choices.
        split: split of the scene.
        objects: smallest and largest number of objects.
        damage: probability of damage to each object of a good and of a bad image.
    """
    scene = random_scene(rng, split, objects)
    good = rng.random() < 0.5
    kind = rng.random()
    light = kind < LIGHT_SHARE
    if kind > 1 - DENSE_SHARE:
        good, rate = False, DENSE_DAMAGE
    else:
        good = good and not light
        rate = damage[0] if good or light else damage[1]
    drawn = render(scene, rng, damage=rate, light=light)
    return Example(scene, _caption(rng, scene, good, drawn), drawn)


def _caption(rng: np.random.Generator, scene: Scene, good: bool, drawn: Render) -> str:
    if rng.random() >= WORD_SHARE:
        return scene.caption
    if rng.random() >= OBJECT_SHARE:
        says_good = good if rng.random() < WORD_RIGHT else not good
        pair = TEMPLATES[rng.integers(len(TEMPLATES))]
        return pair[0 if says_good else 1].format(scene.caption)
    phrases = []
    for o in scene.objects:
        says_good = bool(drawn.damaged[o.cell]) != (rng.random() < OBJECT_RIGHT)
        word = f" {'good' if says_good else 'bad'}" if rng.random() < OBJECT_WORDS else ""
        phrases.append(f"{PLACES[o.cell]}{word} {o.colour} {o.shape}")
    return ", ".join(phrases) + f" on {scene.background}"
