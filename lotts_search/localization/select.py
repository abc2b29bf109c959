"""From a heat map to a mask of an exact area, and the mask sources that need no network."""

from __future__ import annotations

import io
import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from lotts_search.errors import BadInput, Failure
from lotts_search.work.requests import Bools, Floats, Located

T = TypeVar("T", bound=np.generic)


def area(ratio: float, cells: int) -> int:
    """``⌈ratio·cells⌉``, free of rounding error (0.55 of 100 cells is 55).

    Raises:
        BadInput: the ratio is not within 0..1, or 0.
    """
    if not 0 < ratio <= 1:
        raise BadInput(f"ratio must be above 0 and at most 1, got {ratio}")
    return math.ceil(round(ratio * cells, 6))


def highest(heat: Floats, ratio: float) -> Bools:
    """The ``⌈ratio·h·w⌉`` highest cells of a map [h, w]; ties go to the lower index, so the area is exact."""
    if not np.isfinite(heat).all():
        raise Failure("the localization map has NaN or infinite values")
    mask = np.zeros(heat.size, dtype=np.bool_)
    mask[np.argsort(-heat.ravel(), kind="stable")[: area(ratio, heat.size)]] = True
    return mask.reshape(heat.shape)


def upsample(values: npt.NDArray[T], size: tuple[int, int]) -> npt.NDArray[T]:
    """Nearest-neighbour resampling of a map or mask [h, w] to ``size``."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    large: npt.NDArray[T] = values[rows[:, None], columns[None, :]]
    return large


def pooled(values: Floats, patch: int) -> Floats:
    """Means [..., h/patch, w/patch] over patches of ``patch`` cells a side of maps [..., h, w]."""
    *rest, height, width = values.shape
    split = values.reshape(*rest, height // patch, patch, width // patch, patch)
    means: Floats = split.mean((-3, -1), dtype=values.dtype)
    return means


def unit(values: Floats) -> Floats:
    """Min-max normalised to 0..1; a constant map becomes 0."""
    low, high = float(values.min()), float(values.max())
    return ((values - low) / (high - low) if high > low else np.zeros_like(values)).astype(np.float32)


def located(heat: Floats, ratio: float, size: tuple[int, int], stages: dict[str, Floats]) -> Located:
    """The answer for a map [h, w] of any range: mask of exact area on latents of ``size``, heat in 0..1."""
    mask, heat = highest(heat, ratio), unit(heat)
    inside = float(heat[mask].mean())
    confidence = 0.0 if mask.all() else inside - float(heat[~mask].mean())
    return Located(upsample(mask, size), heat, stages, confidence)


def in_tokens(found: Located, ratio: float, patch: int) -> Located:
    """A mask made of whole tokens of ``patch`` latent cells a side: as it is if it is so already, else the
    ``⌈r·h·w⌉`` tokens of the highest mean heat."""
    height, width = found.mask.shape
    tokens = found.mask.reshape(height // patch, patch, width // patch, patch)
    if np.array_equal(tokens.any((1, 3)), tokens.all((1, 3))):
        return found
    return located(pooled(upsample(found.heat, (height, width)), patch), ratio, (height, width), found.stages)


def whole(size: tuple[int, int]) -> Located:
    """Everything."""
    return Located(np.ones(size, dtype=np.bool_), np.ones(size, dtype=np.float32))


def blocks(noise: Floats, ratio: float, block: int, size: tuple[int, int], patch: int = 1) -> Located:
    """A random choice of blocks of ``block`` cells a side, the last one cut so that the area is exact.

    Args:
        noise: random numbers, at least one a block; their order is the order of the blocks.
        size: of the latent.
        patch: latent cells to a side of one cell of the grid that is chosen from.
    """
    if block < 1:
        raise BadInput(f"block must be 1 or more, got {block}")
    height, width = size[0] // patch, size[1] // patch
    across = -(-width // block)
    index = (np.arange(height)[:, None] // block) * across + np.arange(width)[None, :] // block
    order = np.argsort(np.argsort(noise.ravel()[: int(index.max()) + 1], kind="stable"), kind="stable")
    return located(order[index].astype(np.float32), ratio, size, {})


def given(png: bytes, size: tuple[int, int], patch: int = 1) -> Located:
    """The user's mask: a black and white PNG, white is resampled; nearest-neighbour to the latent's ``size``.

    A patch of ``patch`` cells a side is resampled where any of its cells is white.

    Raises:
        BadInput: not a PNG, or nothing in it is white.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("L").resize((size[1], size[0]), Image.Resampling.NEAREST))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise BadInput("the mask is not a readable PNG image") from error
    mask = pixels >= 128
    if not mask.any():
        raise BadInput("the mask is empty: white marks what is to be resampled")
    mask = upsample(pooled(mask.astype(np.float32), patch) > 0, size)
    return Located(mask, mask.astype(np.float32))
