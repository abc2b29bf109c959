"""``shapes-oracle``: an independent judge of shapes images by analysis through synthesis.

It explains each cell of an image by a rendered template (shape, pose, palette colour) and counts the pixels that the
best explanation does not cover. Nothing in it is learned, and nothing that guides a search or trains a model may use
it. Images are uint8 arrays of shape [64, 64, 3].
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lotts_search.errors import BadInput
from lotts_search.shapes.world.render import SIZE, Pose, cell_box, cell_grid, coverage
from lotts_search.shapes.world.scene import BACKGROUNDS, COLOURS, SHAPES, Scene
from lotts_search.work.requests import Bools, Bytes, Floats

DAMAGED_SHARE = 0.12
"""An object counts as damaged if more than this share of its area is damaged."""
OBJECT_PIXELS = 24
"""A cell is empty if at most this many of its pixels differ from the background."""
_STRONG, _WEAK = 0.16, 0.1
"""A pixel is surely damaged if a channel lies further than the first value outside the range of the fit's 3x3
neighbourhood. From there damage extends to pixels that differ from the fit by more than the second value (0..1)."""
_FOCUSED, _UNFOCUSED = (0.0, 0.6, 1.0), (1.8, 2.3, 2.8)
"""Standard deviations of blur (pixels) that are acceptable, e.g. after an autoencoder, and that are damage: an object
is out of focus if one of the latter explains it best."""
_REACH = 3
"""Damage extends at most this many pixels from the surely damaged ones."""
_OUTLIER = 0.3
"""Residuals above this count as one whole pixel when explanations are compared, so that damage cannot outweigh an
outline."""
_TRUNCATE = 0.5
"""Residuals above this share of an object's contrast are truncated to it when its pose is fitted."""
_SLACK, _DOUBT = 6.0, 0.25
"""The expected object is accepted even if its residual exceeds the best one by this many pixels plus this share of the
best: a cell that resembles nothing is a broken object, not a wrong one."""
_COLOUR_SHIFT = 0.1
"""How far (0..1, in any channel) a colour may drift from the palette without being wrong or damaged."""
_GROUND_SHIFT = 0.2
"""How far a background's colour may drift while the objects on it are still judged as usual; beyond ``_COLOUR_SHIFT``
it is not the right background any more."""
_KNOWN_SHARE = 0.04
"""Share of the image that must show a background's colour for it to be recognised."""
_CHUNK = 64
"""Images that are judged together."""
_FINE = 12
"""Lattice points per pixel: the pixel centres of all cells, the offsets and their quarter-pixel shifts lie on it."""
_REACHED = 11.5
"""Largest distance (pixels) of a lattice point from the centre of a shape along an axis."""

_PALETTE: Floats = np.array(list(COLOURS.values()), dtype=np.float32) / np.float32(255)
_NAMES = list(COLOURS)
_GROUNDS: Floats = np.array(list(BACKGROUNDS.values()), dtype=np.float32) / np.float32(255)
_OFFSETS = list(itertools.product((-0.5, 0.0, 0.5), repeat=2))
_TURNS = list(itertools.product((0.92, 0.97, 1.02), (-0.12, -0.06, 0.0, 0.06, 0.12)))
_POSES = len(_OFFSETS) * len(_TURNS)
"""Number of templates per shape: each offset (x, y; pixels) with each scale and rotation (radians), in this order."""
_STEP = np.array((0.25, 0.25, 0.025, 0.03), dtype=np.float32)
"""Half the distance between neighbouring poses: offset (pixels), scale, rotation (radians)."""


@dataclass(frozen=True)
class Verdict:
    """The oracle's judgement of an image that should show a scene. Arrays have one entry per cell, in reading order.

    Attributes:
        expected: [9] bool, whether the scene has an object in the cell.
        present: [9] bool, whether the image shows something in the cell.
        colour_right, shape_right: [9] bool, for objects that are expected and present.
        damage: [9] float32 in 0..1, damaged share of the object's area, for objects that are expected and present.
        area: [9] int, damaged pixels of these objects.
        region: [64, 64] bool, the pixels that the best explanation does not cover.
        found: (colour, shape) shown in each cell, None in an empty cell.
        background: name of the background that the image shows.
        background_right: whether this is the scene's background, in its own colour.
    """

    expected: Bools
    present: Bools
    colour_right: Bools
    shape_right: Bools
    damage: Floats
    area: npt.NDArray[np.int64]
    region: Bools
    found: tuple[tuple[str, str] | None, ...]
    background: str
    background_right: bool

    @property
    def spurious(self) -> Bools:
        """Which cells should be empty and are not [9]."""
        return self.present & ~self.expected

    @property
    def right(self) -> Bools:
        """Which cells show the expected object, damaged or not, or are empty as expected [9]."""
        return np.where(self.expected, self.present & self.colour_right & self.shape_right, ~self.present)

    @property
    def damaged(self) -> Bools:
        """Which expected objects have a damaged share above :data:`DAMAGED_SHARE` [9]."""
        return self.expected & (self.damage > DAMAGED_SHARE)

    @property
    def flawed(self) -> Bools:
        """Which cells a repair should change: wrong, missing, spurious or damaged ones [9]."""
        return ~self.right | self.damaged

    @property
    def quality(self) -> float:
        """Mean over the cells, 0..1: a right object counts its undamaged share, a cell that is rightly empty 1."""
        return float(np.where(self.right, 1 - self.damage, 0).mean())

    @property
    def perfect(self) -> bool:
        """Whether there is nothing to repair and the background is right."""
        return bool(self.background_right and not self.flawed.any())


@dataclass(frozen=True)
class _Bank:
    """Templates of a cell.

    Attributes:
        flat: [shapes * poses, pixels] coverage.
        norm: [shapes * poses] squared norms.
        slope: [shapes * poses, 4, pixels] change of the coverage per ``_STEP`` of each pose parameter.
    """

    flat: Floats
    norm: Floats
    slope: Floats


@cache
def _bank(cell: int) -> _Bank:
    grid_x, grid_y = cell_grid(cell)
    offsets = np.array(_OFFSETS, dtype=np.float32)
    x, y = grid_x[0] - offsets[:, :1], grid_y[:, 0] - offsets[:, 1:]  # [offsets, w], [offsets, h]

    def look(right: float, down: float) -> Floats:
        """Return templates [shapes, offsets, turns, h, w] at positions shifted by ``right`` and ``down`` pixels."""
        columns, rows = (np.rint((v + d + _REACHED) * _FINE).astype(int) for v, d in ((x, right), (y, down)))
        return np.stack([_lattice()[:, :, r[:, None], c] for r, c in zip(rows, columns, strict=True)], axis=1)

    quarter = 3 / _FINE
    across, down = (
        (look(r, d) - look(-r, -d)) / (2 * quarter) for r, d in ((quarter, 0.0), (0.0, quarter))
    )  # derivatives of the coverage by pixel position
    px, py = x[:, None, None, :], y[:, None, :, None]
    # Chain rule for cover(R(-angle) (position - offset) / scale) at scale 1.
    slope = np.stack([-across, -down, -(px * across + py * down), py * across - px * down], axis=3)
    flat = look(0, 0).reshape(len(SHAPES) * _POSES, -1)
    steps = _STEP[:, None, None]
    return _Bank(flat, np.square(flat).sum(axis=1), (slope * steps).reshape(len(flat), 4, -1).astype(np.float32))


@cache
def _lattice() -> Floats:
    """Return the coverage of each shape, scale and rotation on a lattice of ``_FINE`` points per pixel.

    Its shape is [shapes, turns, n, n].
    """
    axis = (np.arange(2 * round(_REACHED * _FINE) + 1) / _FINE - _REACHED).astype(np.float32)
    ys, xs = np.meshgrid(axis, axis, indexing="ij")
    return np.stack(
        [np.stack([coverage(shape, Pose(0, 0, scale, angle), xs, ys) for scale, angle in _TURNS]) for shape in SHAPES]
    )


def judge(image: Bytes, scene: Scene) -> Verdict:
    """Judge one image [64, 64, 3] against the scene it should show."""
    return judge_many(image[None], [scene])[0]


def judge_many(images: Bytes, scenes: Sequence[Scene]) -> list[Verdict]:
    """Judge images [N, 64, 64, 3] against their scenes; the verdicts do not depend on each other.

    Raises:
        BadInput: the images have another shape or type, or there is not one scene per image.
    """
    if images.shape[1:] != (SIZE, SIZE, 3) or images.dtype != np.uint8:
        raise BadInput(f"the oracle judges uint8 images [N, 64, 64, 3], not {images.dtype} {list(images.shape)}")
    if len(images) != len(scenes):
        raise BadInput(f"{len(images)} images for {len(scenes)} scenes")
    verdicts: list[Verdict] = []
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].astype(np.float32) / np.float32(255)
        verdicts += _judge_chunk(chunk, scenes[start : start + _CHUNK])
    return verdicts


def _judge_chunk(images: Floats, scenes: Sequence[Scene]) -> list[Verdict]:
    count = len(images)
    kinds, grounds = _backgrounds(images, scenes)
    wanted = np.full((count, 9, 2), -1)
    for n, scene in enumerate(scenes):
        for o in scene.objects:
            wanted[n, o.cell] = _NAMES.index(o.colour), SHAPES.index(o.shape)
    seen = np.empty((count, 9, 2), dtype=np.int64)
    present = np.empty((count, 9), dtype=bool)
    sizes = np.ones((count, 9), dtype=np.float32)
    unfocused = np.zeros(images.shape[:3], dtype=bool)
    fitted = np.broadcast_to(grounds[:, None, None], images.shape).copy()
    for cell in range(9):
        box = (slice(None), *cell_box(cell))
        patch = images[box]
        height, width = patch.shape[1:3]
        pixels = patch.reshape(count, height * width, 3)
        off = np.abs(pixels - grounds[:, None]).max(axis=-1) > _STRONG
        present[:, cell] = off.sum(axis=1) > OBJECT_PIXELS
        seen[:, cell], cover = _explain(cell, pixels, grounds, wanted[:, cell])
        sizes[:, cell] = cover.sum(axis=1).clip(min=1)
        colours = _drifted(pixels, cover.reshape(count, height, width), _PALETTE[seen[:, cell, 0]])
        cover[~present[:, cell]] = 0
        shown = cover[..., None] * (colours - grounds)[:, None] + grounds[:, None]
        fitted[box] = shown.reshape(patch.shape)
        unfocused[box] = _is_unfocused(patch, cover.reshape(patch.shape[:3]), colours, grounds)[:, None, None]
    region = _leftover(images, fitted, unfocused)
    area = np.stack([region[(slice(None), *cell_box(c))].sum(axis=(1, 2)) for c in range(9)], axis=1)
    expected = wanted[..., 0] >= 0
    both = expected & present
    damage = np.where(both, np.minimum(area / sizes, 1), 0).astype(np.float32)
    colour, shape = ((seen[..., i] == wanted[..., i]) & both for i in (0, 1))
    ground_names = list(BACKGROUNDS)
    drifted = np.abs(grounds - _GROUNDS[kinds]).max(axis=-1) > _COLOUR_SHIFT
    return [
        Verdict(
            expected[n], present[n], colour[n], shape[n], damage[n], np.where(both[n], area[n], 0), region[n],
            tuple((_NAMES[c], SHAPES[s]) if there else None for (c, s), there in zip(seen[n], present[n], strict=True)),
            ground_names[kinds[n]], bool(ground_names[kinds[n]] == scenes[n].background and not drifted[n]),
        )
        for n in range(count)
    ]  # fmt: skip


def _backgrounds(images: Floats, scenes: Sequence[Scene]) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the index of each image's background [N] and its exact colour [N, 3], near the palette's."""
    flat = images.reshape(len(images), -1, 3)
    near = np.stack([np.abs(flat - ground).max(axis=-1) < _GROUND_SHIFT for ground in _GROUNDS], axis=1)
    votes = near.sum(axis=-1)
    kinds = votes.argmax(axis=1)
    colours = np.empty((len(images), 3), dtype=np.float32)
    for n, scene in enumerate(scenes):
        if votes[n, kinds[n]] < _KNOWN_SHARE * flat.shape[1]:
            kinds[n] = list(BACKGROUNDS).index(scene.background)
            colours[n] = _GROUNDS[kinds[n]]
        else:
            colours[n] = np.median(flat[n][near[n, kinds[n]]], axis=0)
    return kinds, _clip_drift(colours, _GROUNDS[kinds], _GROUND_SHIFT)


def _clip_drift(colours: Floats, palette: Floats, most: float) -> Floats:
    drift = np.clip(colours - palette, -most, most)
    return np.asarray(palette + drift, dtype=np.float32)


def _explain(
    cell: int, pixels: Floats, grounds: Floats, wanted: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Find the (colour, shape) that explains each cell best.

    Least squares choose a pose and colour for each shape, and a pose for the expected object; among these candidates
    the smallest truncated residual wins.

    Args:
        pixels: [N, P, 3] pixels of the cell.
        grounds: [N, 3] background colours.
        wanted: [N, 2] expected colour and shape, -1 where the cell should be empty.

    Returns:
        Colour and shape indices [N, 2], and the coverage [N, P].
    """
    bank, count, poses = _bank(cell), len(pixels), _POSES
    contrast = _PALETTE[None] - grounds[:, None]  # [N, colours, 3]
    difference = pixels - grounds[:, None]
    match = (difference.transpose(0, 2, 1).reshape(count * 3, -1) @ bank.flat.T).reshape(count, 3, -1)
    energy = np.square(contrast).sum(axis=-1)
    # The squared error |d - m c|^2 without its constant |d|^2, as [N, colours, shapes, poses].
    error = (energy[:, :, None] * bank.norm - 2 * contrast @ match).reshape(count, len(_PALETTE), len(SHAPES), poses)
    rows = np.arange(count)
    by_shape = error.transpose(0, 2, 1, 3).reshape(count, len(SHAPES), -1).argmin(axis=-1)
    colours, pose = by_shape // poses, by_shape % poses
    shapes = np.broadcast_to(np.arange(len(SHAPES)), colours.shape)
    aim = np.maximum(wanted, 0)
    own = error[rows, aim[:, 0], aim[:, 1]].argmin(axis=-1)
    colours = np.concatenate([aim[:, :1], colours], axis=1)
    shapes = np.concatenate([aim[:, 1:], shapes], axis=1)
    pose = np.concatenate([own[:, None], pose], axis=1)
    cover = bank.flat[shapes * poses + pose]  # [N, candidates, P]
    residual = np.zeros_like(cover)
    for channel in range(3):
        shown = cover * contrast[rows[:, None], colours, channel][..., None]
        np.maximum(residual, np.abs(difference[:, None, :, channel] - shown), out=residual)
    cost = np.minimum(residual / _OUTLIER, 1).sum(axis=-1)
    lenient = cost[:, 0] <= (1 + _DOUBT) * cost[:, 1:].min(axis=1) + _SLACK
    best = np.where(lenient & (wanted[:, 0] >= 0), 0, 1 + cost[:, 1:].argmin(axis=1))
    colour, shape = colours[rows, best], shapes[rows, best]
    return np.stack([colour, shape], axis=1), _place(bank, shape, difference, contrast[rows, colour])


def _place(bank: _Bank, shape: npt.NDArray[np.int64], difference: Floats, contrast: Floats) -> Floats:
    """Return the coverage [N, P] of each shape in the pose that fits the undamaged part of ``difference`` [N, P, 3].

    The smallest truncated residual chooses among the templates, so that a missing piece does not bias the pose. Two
    Gauss-Newton steps on the linearised template, without misfitting pixels, then interpolate between the poses.
    """
    poses = _POSES
    energy = np.square(contrast).sum(axis=-1)
    observed = np.einsum("npc,nc->np", difference, contrast) / energy[:, None]
    templates = bank.flat.reshape(len(SHAPES), poses, -1)[shape]
    pose = np.minimum(np.abs(templates - observed[:, None]), _TRUNCATE).sum(axis=-1).argmin(axis=-1)
    cover, slope = templates[np.arange(len(shape)), pose], bank.slope[shape * poses + pose]
    best, least = cover, np.minimum(np.abs(observed - cover), _TRUNCATE).sum(axis=-1)
    moved = cover
    for _ in range(2):
        weighted = slope * (np.abs(observed - moved) < _TRUNCATE)[:, None]
        normal = weighted @ slope.transpose(0, 2, 1) + 0.3 * np.eye(4, dtype=np.float32)
        target = np.einsum("nkp,np->nk", weighted, observed - cover)
        shift = np.linalg.solve(normal, target[..., None])[..., 0].clip(-1.5, 1.5)
        moved = (cover + np.einsum("nk,nkp->np", shift, slope)).clip(0, 1).astype(np.float32)
        left = np.minimum(np.abs(observed - moved), _TRUNCATE).sum(axis=-1)
        best, least = np.where((left < least)[:, None], moved, best), np.minimum(left, least)
    return np.asarray(best)


def _drifted(pixels: Floats, cover: Floats, palette: Floats) -> Floats:
    """Return the exact colours [N, 3] of objects: the median of their inner pixels near the palette colour, at most a
    small drift from it."""
    inner = ndimage.minimum_filter(cover, size=(1, 3, 3), mode="nearest").reshape(len(cover), -1) > 0.99
    near = np.abs(pixels - palette[:, None]).max(axis=-1) < 2 * _COLOUR_SHIFT
    colours = palette.copy()
    for n, chosen in enumerate(inner & near):
        if chosen.sum() >= 8:
            colours[n] = np.median(pixels[n, chosen], axis=0)
    return _clip_drift(colours, palette, _COLOUR_SHIFT)


def _is_unfocused(patch: Floats, cover: Floats, colours: Floats, grounds: Floats) -> Bools:
    """Return which cells [N, h, w, 3] a blurred fit explains better than a sharp or slightly soft one [N]."""

    def misfit(sigma: float) -> Floats:
        soft = ndimage.gaussian_filter(cover, (0, sigma, sigma), mode="nearest") if sigma else cover
        shown = soft[..., None] * (colours - grounds)[:, None, None] + grounds[:, None, None]
        return np.asarray(np.abs(patch - shown).mean(axis=(1, 2, 3)))

    sharp, blurred = (np.min([misfit(s) for s in sigmas], axis=0) for sigmas in (_FOCUSED, _UNFOCUSED))
    return np.asarray(blurred < sharp, dtype=bool)


def _leftover(images: Floats, fitted: Floats, unfocused: Bools) -> Bools:
    """Return the pixels that the fit does not explain [N, 64, 64]; outlines may be slightly soft and one pixel off."""
    low = ndimage.minimum_filter(fitted, size=(1, 3, 3, 1), mode="nearest")
    high = ndimage.maximum_filter(fitted, size=(1, 3, 3, 1), mode="nearest")
    strong = np.maximum(low - images, images - high).max(axis=-1) > _STRONG
    density = ndimage.uniform_filter(strong.astype(np.float32), size=(1, 3, 3), mode="constant")
    strong &= density > 2.5 / 9  # isolated specks are not damage
    weak = np.abs(images - fitted).max(axis=-1) > _WEAK
    grow = np.ones((1, 3, 3), dtype=bool)
    region = ndimage.binary_dilation(strong, grow, iterations=_REACH, mask=weak | strong)
    return np.asarray(region | (weak & unfocused), dtype=bool)
