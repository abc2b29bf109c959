"""The four kinds of damage to an object of the shapes world.

Each takes the cell's undamaged image [h, w, 3] in 0..1, the background colour [3] and a generator, and returns a
damaged copy. All keep most of the object's colour and rough outline, so that denoising decides early what the object is
and late whether it is damaged.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lotts_search.work.requests import Floats

Damage = Callable[[Floats, Floats, np.random.Generator], Floats]


def blur(cell: Floats, background: Floats, rng: np.random.Generator) -> Floats:
    """Put the object out of focus by a Gaussian blur of 2.4 to 3.4 pixels."""
    sigma = rng.uniform(2.4, 3.4)
    padded = np.pad(cell, ((6, 6), (6, 6), (0, 0)), mode="edge")
    blurred: Floats = ndimage.gaussian_filter(padded, sigma=(sigma, sigma, 0))[6:-6, 6:-6]
    return blurred


def noise(cell: Floats, background: Floats, rng: np.random.Generator) -> Floats:
    """Add coarse grain: 30 to 45 % of the 3x3-pixel blocks take a random colour."""
    h, w, _ = cell.shape
    rows, columns = -(-h // 3), -(-w // 3)
    colours = rng.random((rows, columns, 3), dtype=np.float32)
    chosen = rng.random((rows, columns, 1)) < rng.uniform(0.3, 0.45)

    def enlarge(blocks: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return blocks.repeat(3, axis=0).repeat(3, axis=1)[:h, :w]

    return np.where(enlarge(chosen), enlarge(colours), cell).astype(np.float32)


def missing(cell: Floats, background: Floats, rng: np.random.Generator) -> Floats:
    """Cut off a piece along a line near the object's centre."""
    h, w, _ = cell.shape
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:h, :w]
    side = np.cos(angle) * (x + 0.5 - w / 2) + np.sin(angle) * (y + 0.5 - h / 2) - rng.uniform(-1.0, 2.5)
    cut = np.clip(side + 0.5, 0, 1)[..., None]
    rest: Floats = (cut * background + (1 - cut) * cell).astype(np.float32)
    return rest


def shuffle(cell: Floats, background: Floats, rng: np.random.Generator) -> Floats:
    """Permute the cell's nine 7-pixel blocks."""
    out = cell.copy()
    order = rng.permutation(9)
    while (order == np.arange(9)).sum() > 2:
        order = rng.permutation(9)
    for target, source in enumerate(order):
        (tr, tc), (sr, sc) = divmod(target, 3), divmod(int(source), 3)
        out[7 * tr : 7 * tr + 7, 7 * tc : 7 * tc + 7] = cell[7 * sr : 7 * sr + 7, 7 * sc : 7 * sc + 7]
    return out


DAMAGES: tuple[Damage, ...] = (blur, noise, missing, shuffle)
