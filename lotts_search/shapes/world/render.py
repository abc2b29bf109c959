"""Antialiased rendering of scenes by signed distances, with damage per object.

Images are float32 arrays of shape [64, 64, 3] in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lotts_search.shapes.world.damage import DAMAGES
from lotts_search.shapes.world.scene import BACKGROUNDS, COLOURS, Scene
from lotts_search.work.requests import Bools, Bytes, Floats

SIZE = 64
"""Width and height of an image in pixels."""
PITCH = SIZE / 3
"""Distance between the centres of neighbouring cells in pixels."""
EDGES: tuple[int, ...] = (0, 21, 43, 64)
"""Pixel borders of the cells: cell (row, column) is ``[EDGES[row]:EDGES[row + 1], ...]``."""
DAMAGE_THRESHOLD = 0.1
"""A pixel is damaged if a channel differs by more than this from the undamaged render."""


@dataclass(frozen=True)
class Pose:
    """The placement of an object within its cell: offset (pixels), scale and rotation (radians)."""

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    angle: float = 0.0

    @staticmethod
    def random(rng: np.random.Generator) -> Pose:
        dx, dy = rng.uniform(-0.6, 0.6, size=2)
        return Pose(float(dx), float(dy), float(rng.uniform(0.92, 1.02)), float(rng.uniform(-0.12, 0.12)))


@dataclass
class Render:
    """A rendered image with its ground truth.

    Attributes:
        image: [64, 64, 3] float32 in 0..1.
        damaged: [9] bool, which cells have a damaged object.
        region: [64, 64] bool, which pixels the damage changed.
        light: whether the whole image has the lighting defect.
    """

    image: Floats
    damaged: Bools
    region: Bools
    light: bool = False


def cell_box(cell: int) -> tuple[slice, slice]:
    """Return the rows and columns of a cell in the image."""
    r, c = divmod(cell, 3)
    return slice(EDGES[r], EDGES[r + 1]), slice(EDGES[c], EDGES[c + 1])


def _polygon(x: Floats, y: Floats, corners: npt.NDArray[np.float64]) -> Floats:
    """Return the signed distance to a simple polygon, negative inside."""
    best = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        best = np.minimum(best, np.hypot(px - t * ex, py - t * ey))
        crosses = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -best, best).astype(np.float32)


def _regular(count: int, radius: float, inner: float | None = None) -> npt.NDArray[np.float64]:
    """Return the corners of a regular polygon that points up, or of a star with the inner radius ``inner``."""
    n = count * (1 if inner is None else 2)
    angle = -np.pi / 2 + 2 * np.pi * np.arange(n) / n
    radii = np.full(n, radius)
    if inner is not None:
        radii[1::2] = inner
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


_CROSS = np.array(
    [(-3.3, -9.4), (3.3, -9.4), (3.3, -3.3), (9.4, -3.3), (9.4, 3.3), (3.3, 3.3),
     (3.3, 9.4), (-3.3, 9.4), (-3.3, 3.3), (-9.4, 3.3), (-9.4, -3.3), (-3.3, -3.3)]
)  # fmt: skip
_CORNERS: dict[str, npt.NDArray[np.float64]] = {
    "square": np.array([(-8.2, -8.2), (8.2, -8.2), (8.2, 8.2), (-8.2, 8.2)]),
    "triangle": np.array([(0.0, -9.6), (9.8, 8.4), (-9.8, 8.4)]),
    "diamond": _regular(4, 10.2),
    "cross": _CROSS,
    "star": _regular(5, 10.4, inner=4.6) + np.array([(0.0, 0.6)]),
}


def coverage(shape: str, pose: Pose, xs: Floats, ys: Floats) -> Floats:
    """Return the share of each pixel that the shape covers, 0..1; ``xs, ys`` are pixel centres relative to the cell's
    centre."""
    x, y = (xs - pose.dx) / pose.scale, (ys - pose.dy) / pose.scale
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    x, y = (cos * x + sin * y).astype(np.float32), (cos * y - sin * x).astype(np.float32)
    if shape == "circle":
        distance = np.hypot(x, y) - 9.3
    elif shape == "ring":
        distance = np.abs(np.hypot(x, y) - 7.0) - 2.5
    else:
        distance = _polygon(x, y, _CORNERS[shape])
    covered: Floats = np.clip(0.5 - distance * pose.scale, 0, 1).astype(np.float32)
    return covered


def cell_grid(cell: int) -> tuple[Floats, Floats]:
    """Return x and y of a cell's pixel centres relative to the cell's centre, each [rows, columns]."""
    rows, columns = cell_box(cell)
    r, c = divmod(cell, 3)
    ys = np.arange(rows.start, rows.stop) + 0.5 - PITCH * (r + 0.5)
    xs = np.arange(columns.start, columns.stop) + 0.5 - PITCH * (c + 0.5)
    grid_y, grid_x = np.meshgrid(ys, xs, indexing="ij")
    return grid_x.astype(np.float32), grid_y.astype(np.float32)


_GRIDS = [cell_grid(c) for c in range(9)]


def _shade(rng: np.random.Generator) -> Floats:
    """Return the lighting defect [64, 64, 1]: a ramp from full light to near darkness across the whole image."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, SIZE)
    ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    shade: Floats = (rng.uniform(0.15, 0.3) + (1 - 0.15) * ramp).clip(0, 1).astype(np.float32)[..., None]
    return shade


def _rgb(colour: tuple[int, int, int]) -> Floats:
    return np.asarray(colour, dtype=np.float32) / np.float32(255)


def render(scene: Scene, rng: np.random.Generator, *, damage: float = 0.0, light: bool = False) -> Render:
    """Render a scene with random poses; each object is damaged independently with probability ``damage``.

    Args:
        scene: the scene to render.
        rng: source of the poses, the damage and the direction of the lighting defect.
        damage: probability that an object is damaged, 0..1.
        light: apply the lighting defect, a global defect that no local repair can remove.
    """
    background = _rgb(BACKGROUNDS[scene.background])
    clean: Floats = np.broadcast_to(background, (SIZE, SIZE, 3)).copy()
    damaged = np.zeros(9, dtype=bool)
    for obj in scene.objects:
        mask = coverage(obj.shape, Pose.random(rng), *_GRIDS[obj.cell])[..., None]
        clean[cell_box(obj.cell)] = mask * _rgb(COLOURS[obj.colour]) + (1 - mask) * background
    image = clean.copy()
    for obj in scene.objects:
        if rng.random() < damage:
            damaged[obj.cell] = True
            box = cell_box(obj.cell)
            kind = DAMAGES[rng.integers(len(DAMAGES))]
            image[box] = kind(clean[box], background, rng)
    region = np.abs(image - clean).max(axis=-1) > DAMAGE_THRESHOLD
    if light:
        image = image * _shade(rng)
    return Render(image.clip(0, 1).astype(np.float32), damaged, region, light)


def to_uint8(image: Floats) -> Bytes:
    """Return an image in 0..1 as bytes."""
    return (image * 255 + 0.5).clip(0, 255).astype(np.uint8)
