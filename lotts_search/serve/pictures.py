"""Uploaded images and masks, and images for answers."""

from __future__ import annotations

import base64
import io
import warnings

import numpy as np
from PIL import Image

from lotts_search.errors import BadInput
from lotts_search.serve.errors import ApiError
from lotts_search.work.image_files import image_size, mask_png, read_image, read_mask
from lotts_search.work.requests import Bools, Bytes

FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats of uploads; Pillow reads many more, which nobody needs here."""
THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""


def check_upload(data: bytes, name: str, pixels: int) -> None:
    """Refuse what is no image of a format of :data:`FORMATS`, or has more than ``pixels``, by its first bytes alone.

    Raises:
        ApiError: 400.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except Exception as error:  # whatever a broken file makes Pillow raise
        raise ApiError(
            400, f"{name} is not a readable {', '.join(FORMATS)} image", param=name, code="invalid_image"
        ) from error
    if width * height > pixels:
        raise ApiError(
            400, f"{name} has {width}x{height} pixels: at most {pixels} are read", param=name, code="image_too_large"
        )


def upload(
    image: bytes, mask: bytes | None, mask_image: bytes | None, size: tuple[int, int]
) -> tuple[Bytes, Bools | None]:
    """Return an uploaded image [h, w, 3] of ``size`` (height, width), and its mask [h, w]: True where it is resampled.

    Args:
        mask: OpenAI's: resampled where it is transparent.
        mask_image: resampled where it is white.

    Raises:
        BadInput: one of them cannot be read, or a mask marks nothing.
    """
    like = image_size(image)
    if mask is not None:
        mask_image = _from_alpha(mask)
    marked = None if mask_image is None else read_mask(mask_image, size, like=like)
    return read_image(image, size), marked


def _from_alpha(mask: bytes) -> bytes:
    with Image.open(io.BytesIO(mask), formats=FORMATS) as image:
        if not image.has_transparency_data:
            raise BadInput(
                "mask has no alpha channel: its transparent places are resampled; mask_image takes black and white"
            )
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    if not (alpha == 0).any():
        raise BadInput("mask has no transparent pixel, and transparent places are resampled")
    return mask_png(alpha == 0)


def encoded(image: Bytes, format: str, compression: int | None = None) -> str:
    """Return an image [h, w, 3] as base64.

    Args:
        format: png, jpeg or webp.
        compression: quality of jpeg and webp, 0..100; None = 100.
    """
    buffer = io.BytesIO()
    options = {} if format == "png" else {"quality": 100 if compression is None else compression}
    Image.fromarray(image).save(buffer, format=format.upper(), **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnail(image: Bytes) -> str:
    """Return a small version of an image [h, w, 3] as a data URI."""
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return f"data:image/webp;base64,{encoded(np.asarray(small), 'webp', 80)}"
