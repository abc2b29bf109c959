"""From a heat map to a mask of an exact area, and the methods of the mask sources that need neither."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lotts_search.backbones.base import Backbone
from lotts_search.errors import BadInput, Failure
from lotts_search.work.image_files import read_mask
from lotts_search.work.masks import GivenMask, RandomMask, WholeMask
from lotts_search.work.model import ModelInfo
from lotts_search.work.mosaics import upsample
from lotts_search.work.noise import draw
from lotts_search.work.requests import Bools, Floats, Locate, Located


def area(ratio: float, cells: int) -> int:
    """Return ``⌈ratio·cells⌉``, free of rounding error (0.55 of 100 cells is 55).

    Raises:
        BadInput: the ratio is not above 0 and at most 1.
    """
    if not 0 < ratio <= 1:
        raise BadInput(f"ratio must be above 0 and at most 1, got {ratio}")
    return math.ceil(round(ratio * cells, 6))


def highest(heat: Floats, ratio: float) -> Bools:
    """Return the ``⌈ratio·h·w⌉`` highest cells of a map [h, w]; ties go to the lower index, so the area is exact.

    Raises:
        Failure: the map has NaN or infinite values.
    """
    if not np.isfinite(heat).all():
        raise Failure("the localization map has NaN or infinite values")
    mask = np.zeros(heat.size, dtype=np.bool_)
    mask[np.argsort(-heat.ravel(), kind="stable")[: area(ratio, heat.size)]] = True
    return mask.reshape(heat.shape)


def pooled(values: Floats, patch: int) -> Floats:
    """Return the means [..., h/patch, w/patch] of maps [..., h, w] over square patches with sides of ``patch`` cells."""
    *rest, height, width = values.shape
    split = values.reshape(*rest, height // patch, patch, width // patch, patch)
    means: Floats = split.mean((-3, -1), dtype=values.dtype)
    return means


FLAT = 1e-6
"""Relative size of differences in a map that are rounding errors of float32."""


def flat(values: npt.NDArray[np.floating], scale: float | None = None) -> bool:
    """Return whether a map is constant but for rounding errors.

    Args:
        scale: magnitude of the values that it was computed from; None = its own.
    """
    return bool(np.ptp(values) <= FLAT * (float(np.abs(values).max()) if scale is None else scale))


def unit(values: Floats) -> Floats:
    """Normalise a map to 0..1 by its minimum and maximum; a constant map becomes 0."""
    low, high = float(values.min()), float(values.max())
    return (np.zeros_like(values) if flat(values) else (values - low) / (high - low)).astype(np.float32)


def from_heat(heat: Floats, ratio: float, size: tuple[int, int], stages: dict[str, Floats]) -> Located:
    """Return the mask of the ``⌈ratio·h·w⌉`` highest cells of a map, at the size of the latent.

    Args:
        heat: [h, w], of any range, higher where the image is worse.
        ratio: above 0 to 1.
        size: (H, W) of the latent.
        stages: maps that led to ``heat``, for reports.
    """
    heat = np.zeros_like(heat) if flat(heat) else heat
    mask, heat = highest(heat, ratio), unit(heat)
    inside = float(heat[mask].mean())
    confidence = 0.0 if mask.all() else inside - float(heat[~mask].mean())
    return Located(upsample(mask, size), heat, stages, confidence)


def smooth(values: Floats, deviation: float) -> Floats:
    """Smooth a map [h, w] with a Gaussian of this standard deviation in cells, its weights renormalised at the borders."""
    if deviation <= 0:
        return values
    kernels = []
    for length in values.shape:
        distance = np.arange(length)[:, None] - np.arange(length)[None, :]
        kernel = np.exp(-0.5 * (distance / deviation) ** 2)
        kernels.append(kernel / kernel.sum(1, keepdims=True))
    smoothed: Floats = (kernels[0] @ values @ kernels[1].T).astype(np.float32)
    return smoothed


def in_tokens(found: Located, ratio: float, patch: int) -> Located:
    """Return a mask made of whole network tokens, squares with sides of ``patch`` latent cells.

    A mask that is made of whole tokens stays as it is; otherwise the ``⌈ratio·h·w⌉`` tokens of the highest mean heat
    are selected.
    """
    height, width = found.mask.shape
    tokens = found.mask.reshape(height // patch, patch, width // patch, patch)
    if np.array_equal(tokens.any((1, 3)), tokens.all((1, 3))):
        return found
    return from_heat(pooled(upsample(found.heat, (height, width)), patch), ratio, (height, width), found.stages)


def informed(found: Located, work: Locate, info: ModelInfo) -> tuple[Located, str]:
    """Return a mask and "", or where the map is the same everywhere the mask that ``work.blank`` wants and the reason.

    Raises:
        Failure: the map is the same everywhere, and ``work.blank`` is ``fail``.
    """
    size = (found.mask.shape[0], found.mask.shape[1])
    if work.blank == "keep" or found.mask.all() or not flat(found.heat):
        return found, ""
    if not np.array_equal(found.mask, upsample(highest(found.heat, work.source.ratio), size)):
        return found, ""  # a method that chose its mask in another way
    why = f"the map of {type(work.source).__name__} is the same everywhere: it does not show what to resample"
    if work.blank == "fail":
        raise Failure(f"{why} (blank=whole and blank=random continue without it)")
    chosen = _whole(info) if work.blank == "whole" else _random(info, work, work.source.ratio)
    return replace(chosen, stages=found.stages | {"heat": found.heat}), f"{why}; instead: {work.blank}"


def locate_whole(backbone: Backbone, work: Locate, source: WholeMask) -> Located:
    """Select everything."""
    return _whole(backbone.info)


def _whole(info: ModelInfo) -> Located:
    return Located(np.ones(info.latent[1:], dtype=np.bool_), np.ones(info.latent[1:], dtype=np.float32))


def locate_random(backbone: Backbone, work: Locate, source: RandomMask) -> Located:
    """Select random square blocks of cells; a cell is a token of the network, and the last block is cut so that the
    area is exact.

    Raises:
        BadInput: the block is smaller than a cell.
    """
    if source.block < 1:
        raise BadInput(f"block must be 1 or more, got {source.block}")
    return _random(backbone.info, work, source.ratio, source.block)


def _random(info: ModelInfo, work: Locate, ratio: float, block: int = 1) -> Located:
    (height, width), patch = info.latent[1:], info.patch
    # One number per cell of the latent suffices for any block size; the order of the numbers is that of the blocks.
    noise = draw(work.search_seed, work.lineage, "locate", 0, (height, width))
    rows, columns = height // patch, width // patch
    across = -(-columns // block)
    index = (np.arange(rows)[:, None] // block) * across + np.arange(columns)[None, :] // block
    order = np.argsort(np.argsort(noise.ravel()[: int(index.max()) + 1], kind="stable"), kind="stable")
    return from_heat(order[index].astype(np.float32), ratio, (height, width), {})


def locate_given(backbone: Backbone, work: Locate, source: GivenMask) -> Located:
    """Select what is white in the user's image: a token of the network where any pixel in it is white.

    Raises:
        BadInput: not an image, nothing in it is white, or its aspect ratio is not the model's.
    """
    (height, width), patch = backbone.info.latent[1:], backbone.info.patch
    mask = upsample(read_mask(source.png, (height // patch, width // patch)), (height, width))
    return Located(mask, mask.astype(np.float32))
