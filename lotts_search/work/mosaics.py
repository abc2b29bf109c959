"""Grids over images and latents, and mosaics: arrays that take each cell of a grid from one of several arrays."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)


def upsample(values: npt.NDArray[T], size: tuple[int, int]) -> npt.NDArray[T]:
    """Resize a map or mask [h, w] to ``size`` by nearest neighbour."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    large: npt.NDArray[T] = values[rows[:, None], columns[None, :]]
    return large


def mosaic(layers: npt.NDArray[T], choice: npt.NDArray[np.integer], axis: int = 1) -> npt.NDArray[T]:
    """Return the array that shows in cell (i, j) of a grid what ``layers[choice[i, j]]`` shows there.

    Args:
        layers: [M, …]; ``axis`` and the next one are its height and width: images [M, H, W, 3] by default, latents
            [M, C, H, W] with 2.
        choice: [rows, columns], 0..M-1; the grid covers the layers as in :func:`upsample`.
    """
    chosen = np.empty(layers.shape[1:], layers.dtype)
    # Cell i begins at the first row (column) that upsample gives to it.
    rows, columns = (
        [slice(-(-i * size // cells), -(-(i + 1) * size // cells)) for i in range(cells)]
        for cells, size in zip(choice.shape, layers.shape[axis : axis + 2], strict=True)
    )
    before = (slice(None),) * (axis - 1)
    for row, numbers in zip(rows, choice.tolist(), strict=True):
        for column, number in zip(columns, numbers, strict=True):
            chosen[*before, row, column] = layers[number, *before, row, column]
    return chosen
