"""The low frequencies of noise: coefficients of the functions that are constant on each cell of a grid.

On a grid whose cells are squares of 2^k positions these functions are the Haar scaling functions of level k, and what is left of
a noise without them are its k levels of wavelets (Haar 1910). They are orthonormal on any grid, so that white noise has
independent standard normal coefficients, and so that exchanging these for others such leaves it white.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lotts_search.errors import BadInput
from lotts_search.work.mosaics import upsample

Doubles = npt.NDArray[np.float64]


def low(noise: npt.NDArray[np.floating], size: tuple[int, int]) -> Doubles:
    """Return the coefficients [C, rows, columns] of a noise [C, H, W] on a grid of this size; the grid covers the noise as in
    :func:`~lotts_search.work.mosaics.upsample`.

    Raises:
        BadInput: the grid has no rows or columns, or more than the noise.
    """
    cells, areas = _grid(noise.shape, size)
    sums = np.stack([np.bincount(cells.ravel(), channel.ravel(), len(areas)) for channel in noise])
    return np.asarray((sums / np.sqrt(areas)).reshape(-1, *size))


def with_low(noise: npt.NDArray[np.floating], values: npt.NDArray[np.floating]) -> Doubles:
    """Return the noise [C, H, W] with these coefficients [C, rows, columns] instead of its own.

    Raises:
        BadInput: see :func:`low`, or the numbers of channels differ.
    """
    size = values.shape[1:]
    if len(values) != len(noise):
        raise BadInput(
            f"the low frequencies of a noise with {len(noise)} channels must have as many, not {len(values)}"
        )
    cells, areas = _grid(noise.shape, size)
    change = (values - low(noise, size)).reshape(len(noise), -1) / np.sqrt(areas)
    return np.asarray(noise + change[:, cells])


def _grid(shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the cell of each position [H, W], and the number of positions of each cell."""
    height, width = shape[1:]
    rows, columns = size
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise BadInput(
            f"a grid of low frequencies must have 1..{height} rows and 1..{width} columns, not {rows} and {columns}"
        )
    cells = upsample(np.arange(rows * columns).reshape(rows, columns), (height, width))
    return cells, np.bincount(cells.ravel())
