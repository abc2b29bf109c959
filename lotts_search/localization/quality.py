"""No-reference quality maps of an image: statistics of its pixels, without a network and without training.

Each function takes an image [h, w, 3] uint8 and returns a map [h, w], higher where the image is worse:

* ``sharpness``: local variance of the Laplacian, negated (Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield
  microscopy"). The variance is low where the image is blurred, or plain.
* ``grain``: local mean of the response to the difference of two Laplacians, which is 0 for lines and planes (Immerkær
  1996, "Fast noise variance estimation").
* ``mscn``: Mahalanobis distance of the local statistics of mean-subtracted, contrast-normalised luminance from those of
  the whole image. The features are those of BRISQUE and NIQE (Mittal et al. 2012, 2013). The image itself replaces
  NIQE's corpus of pristine images, so damage is found where it is the exception.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage

from lotts_search.backbones.base import Backbone, device_of
from lotts_search.errors import BadInput, unknown
from lotts_search.localization.select import from_heat, smooth
from lotts_search.work.masks import QualityMask
from lotts_search.work.requests import Bytes, Floats, Locate, Located

Values: TypeAlias = npt.NDArray[np.float64]
QualityMap: TypeAlias = Callable[[Bytes], npt.NDArray[np.floating]]
_LUMINANCE = (0.299, 0.587, 0.114)
_WINDOW = 7 / 6
"""Standard deviation of the Gaussian window of MSCN coefficients, in pixels (Mittal et al.)."""
_PATCH = 1 / 32
"""Standard deviation of the window of local statistics, as a share of the image's shorter side."""


def _windowed(values: Values) -> Values:
    mean: Values = ndimage.gaussian_filter(values, max(1.0, _PATCH * min(values.shape)))
    return mean


def _luminance(image: Bytes) -> Values:
    grey: Values = image.astype(np.float64) @ np.array(_LUMINANCE)
    return grey


def sharpness(image: Bytes) -> Values:
    """Return the negated logarithm of the local variance of the Laplacian."""
    edges = ndimage.laplace(_luminance(image))
    variance = np.maximum(_windowed(edges**2) - _windowed(edges) ** 2, 0)
    blurred: Values = -np.log1p(variance)
    return blurred


def grain(image: Bytes) -> Values:
    """Return the local standard deviation of noise in grey levels: Immerkær's estimate within a window."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    response = _windowed(np.abs(ndimage.convolve(_luminance(image), kernel)))
    noise: Values = np.sqrt(np.pi / 2) / 6 * response
    return noise


def mscn(image: Bytes) -> Values:
    """Return the Mahalanobis distance of local MSCN statistics from their mean over the image."""
    grey = _luminance(image)
    mean = ndimage.gaussian_filter(grey, _WINDOW)
    spread = np.sqrt(np.maximum(ndimage.gaussian_filter(grey**2, _WINDOW) - mean**2, 0))
    normal = (grey - mean) / (spread + 1)
    # Variance and mean magnitude, which give the shape of the distribution, contrast, and the products of neighbours
    # in four directions.
    features = [normal**2, np.abs(normal), spread]
    features += [normal * np.roll(normal, shift, (0, 1)) for shift in ((0, 1), (1, 0), (1, 1), (1, -1))]
    local = np.stack([_windowed(feature) for feature in features], axis=-1).reshape(-1, len(features))
    apart = local - local.mean(0)
    precision = np.linalg.pinv(np.cov(apart.T))
    distance: Values = np.sqrt(np.einsum("ni,ij,nj->n", apart, precision, apart).clip(0))
    return distance.reshape(grey.shape)


MAPS: dict[str, QualityMap] = {"mscn": mscn, "sharpness": sharpness, "grain": grain}


def quality_map(name: str) -> QualityMap:
    """Return the map of a name or of ``package.module:function``.

    Raises:
        BadInput: there is no such map, or it cannot be imported.
    """
    if name in MAPS:
        return MAPS[name]
    if ":" not in name:
        raise unknown("quality map", name, [*MAPS, "package.module:function"])
    try:
        found: QualityMap = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"quality map {name!r} cannot be imported: {error}") from error
    return found


def locate_quality(backbone: Backbone, work: Locate, source: QualityMask) -> Located:
    """Select the worst part of the image by a no-reference map, averaged over the cells of the latent.

    Raises:
        BadInput: there is no such map, or it returned no map.
    """
    size = backbone.info.latent[1:]
    values = np.asarray(quality_map(source.map)(image_of(backbone, work)), dtype=np.float32)
    if values.ndim != 2:
        raise BadInput(f"quality map {source.map!r} must return a map [h, w], not an array of shape {values.shape}")
    heat = shrink(values, (size[0], size[1]))
    stages = {source.map: heat, "smoothed": smooth(heat, source.smooth)}
    return from_heat(stages["smoothed"], source.ratio, (size[0], size[1]), stages)


def image_of(backbone: Backbone, work: Locate) -> Bytes:
    """Return the image [h, w, 3] of a localization, decoded where it does not come with the work."""
    if work.image is not None:
        return work.image
    image: Bytes = backbone.decode(torch.from_numpy(work.state.latent)[None].to(device_of(backbone)))[0]
    return image


def shrink(values: Floats, size: tuple[int, int]) -> Floats:
    """Average a map over the area of each cell of a grid ``size`` (h, w)."""
    small: Floats = np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BOX))
    return small
