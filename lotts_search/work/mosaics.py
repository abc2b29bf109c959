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
    cells = upsample(choice, (layers.shape[axis], layers.shape[axis + 1])).astype(np.intp)
    index = cells.reshape((1,) * axis + cells.shape + (1,) * (layers.ndim - axis - 2))
    chosen: npt.NDArray[T] = np.take_along_axis(layers, index, axis=0)[0]
    return chosen
