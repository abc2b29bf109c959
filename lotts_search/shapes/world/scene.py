"""The grammar of the shapes world: scenes, their captions, and the train, tune and test splits.

A scene is a 3x3 grid on a plain background. Six to nine cells have one object each, named by place, colour and shape:
``top left red circle, center blue star, ... on gray``.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (246, 222, 60),
    "green": (40, 160, 70),
    "cyan": (60, 205, 215),
    "blue": (40, 80, 210),
    "purple": (130, 50, 170),
    "pink": (245, 135, 190),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "cross", "ring", "star")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (240, 240, 240),
    "gray": (150, 150, 150),
    "brown": (96, 72, 52),
    "black": (18, 18, 18),
}
PLACES: tuple[str, ...] = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""Names of the nine cells in reading order: cell ``3 * row + column``."""

MIN_OBJECTS, MAX_OBJECTS = 6, 9
Split = Literal["train", "tune", "test"]
_SPLIT_UPTO: tuple[tuple[Split, float], ...] = (("tune", 0.05), ("test", 0.10), ("train", 1.0))
"""Upper ends of the shares of the splits: 5 % of all scenes for tuning, 5 % for testing, the rest for training."""


@dataclass(frozen=True, order=True)
class Object:
    """One object of a scene: its cell (0 to 8, reading order), colour and shape."""

    cell: int
    colour: str
    shape: str

    @property
    def phrase(self) -> str:
        """The part of a caption that names this object."""
        return f"{PLACES[self.cell]} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects in reading order on a background, at most one object per cell."""

    objects: tuple[Object, ...]
    background: str

    @property
    def caption(self) -> str:
        """The prompt that describes this scene."""
        return ", ".join(o.phrase for o in self.objects) + f" on {self.background}"

    @property
    def split(self) -> Split:
        """The split of this scene: a pure function of its caption, so that splits never overlap."""
        digest = hashlib.blake2b(self.caption.encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        return next(name for name, upper in _SPLIT_UPTO if share < upper)


def random_scene(
    rng: np.random.Generator,
    split: Split | None = None,
    objects: tuple[int, int] = (MIN_OBJECTS, MAX_OBJECTS),
) -> Scene:
    """Draw a scene with ``objects[0]`` to ``objects[1]`` objects, from ``split`` if it is given."""
    while True:
        count = int(rng.integers(objects[0], objects[1] + 1))
        cells = sorted(rng.choice(9, size=count, replace=False).tolist())
        colours, backgrounds = list(COLOURS), list(BACKGROUNDS)
        scene = Scene(
            tuple(Object(c, colours[rng.integers(len(colours))], SHAPES[rng.integers(len(SHAPES))]) for c in cells),
            backgrounds[rng.integers(len(backgrounds))],
        )
        if split is None or scene.split == split:
            return scene


def scenes(split: Split, count: int, seed: int = 0) -> list[Scene]:
    """Return ``count`` distinct scenes of a split, always the same for the same arguments."""
    rng = np.random.default_rng([seed, len(split), ord(split[1])])
    found: dict[Scene, None] = {}
    while len(found) < count:
        found.setdefault(random_scene(rng, split))
    return list(found)


_OBJECT = re.compile(
    rf"\b({'|'.join(sorted(PLACES, key=len, reverse=True))}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b"
)
_BACKGROUND = re.compile(rf"\bon ({'|'.join(BACKGROUNDS)})\b")


def parse_caption(prompt: str) -> Scene:
    """Return the scene that a caption describes, with any words before or after it.

    Raises:
        ValueError: the prompt names no object, a place twice, or no background.
    """
    objects = [Object(PLACES.index(p), c, s) for p, c, s in _OBJECT.findall(prompt)]
    background = _BACKGROUND.search(prompt)
    if not objects or background is None:
        raise ValueError(
            f"not a shapes caption: {prompt!r}; expected for example 'top left red circle, center blue star on gray'"
        )
    if len({o.cell for o in objects}) < len(objects):
        raise ValueError(f"a place is named twice in {prompt!r}")
    return Scene(tuple(sorted(objects)), background.group(1))
