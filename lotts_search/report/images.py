"""Images, heat maps and masks as text for a page: data URIs and SVG paths."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from lotts_search.work.requests import Bools, Bytes, Floats

Stops = tuple[tuple[int, int, int], ...]
SEQUENTIAL: Stops = ((13, 12, 38), (68, 20, 98), (140, 32, 99), (210, 62, 68), (246, 132, 38), (252, 212, 96))
"""Colours from dark (low values) to bright (high values), evenly spaced."""
DIVERGING: Stops = ((38, 92, 168), (136, 178, 220), (240, 240, 236), (236, 156, 122), (176, 44, 48))
"""Colours from blue (below zero) over pale (zero) to red (above zero), evenly spaced."""


def data_uri(image: Bytes) -> str:
    """Return an image [h, w, 3] uint8 as ``data:image/png;base64,…``."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _paint(share: npt.NDArray[np.float64], stops: Stops) -> Bytes:
    """Return the colours of values in 0..1, interpolated linearly between evenly spaced stops."""
    positions = np.linspace(0, 1, len(stops))
    channels = [np.interp(share, positions, [stop[c] for stop in stops]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def colour_map(values: Floats) -> Bytes:
    """Return the colours [h, w, 3] of a map [h, w].

    A map with both signs is coloured symmetrically about zero, any other map from its minimum to its maximum. A
    constant map takes the middle colour.
    """
    map_ = values.astype(np.float64)
    low, high = float(map_.min()), float(map_.max())
    if low < 0 < high:
        reach = max(-low, high)
        return _paint((map_ / reach + 1) / 2, DIVERGING)
    if high == low:
        return _paint(np.full(map_.shape, 0.5), SEQUENTIAL)
    return _paint((map_ - low) / (high - low), SEQUENTIAL)


def outline(mask: Bools) -> str:
    """Return the outline of a mask [h, w] as an SVG path in units of cells, the border of the image included.

    The path has one segment for each straight run of edges between a masked and an unmasked cell.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    parts: list[str] = []
    # The horizontal line y has an edge wherever the cells above and below it differ.
    for y, row in enumerate(np.diff(padded, axis=0)[:, 1:-1] != 0):
        parts += [f"M{a} {y}H{b}" for a, b in _runs(row)]
    for x, column in enumerate((np.diff(padded, axis=1)[1:-1, :] != 0).T):
        parts += [f"M{x} {a}V{b}" for a, b in _runs(column)]
    return "".join(parts)


def area(mask: Bools) -> str:
    """Return an SVG path in units of cells that fills a mask [h, w]."""
    return "".join(f"M{a} {y}H{b}V{y + 1}H{a}Z" for y, row in enumerate(mask) for a, b in _runs(row))


def _runs(flags: Bools) -> list[tuple[int, int]]:
    """Return the half-open intervals in which ``flags`` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
