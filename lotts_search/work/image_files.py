"""Images and masks from files: every mode and size that Pillow opens becomes the pixels that a person sees in it.

Pillow's own ``convert("RGB")`` clips 16-bit greys to white, shows the hidden colours of transparent pixels and ignores
the rotation that a camera notes in EXIF. Nothing of that is silent here: it is done right, reported or refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from lotts_search.errors import BadInput, notice
from lotts_search.work.requests import Bools, Bytes

_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Modes of one channel with more than 8 bits."""
_PROFILED = (
    dict.fromkeys(("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"), "RGB")
    | dict.fromkeys(("L", "LA", "La", "1"), "L")
    | {"CMYK": "CMYK"}
)
"""The mode in which an image of another mode has the colours of its profile."""
_TRANSPARENT = "is transparent in places: white is laid under it"


def read_image(data: bytes | Path, size: tuple[int, int] | None = None) -> Bytes:
    """Read an image, a file or its bytes, as uint8 [h, w, 3] of ``size`` (height, width); None = its own size.

    The rotation in EXIF and the colour profile are applied, transparency is laid over white, and 16-bit values are scaled
    to 8 bits. An image of another aspect ratio is cropped around its centre and one of another size resampled; both are
    reported.

    Raises:
        BadInput: there is no such file, or it is not an image that can be read.
    """
    name = str(data) if isinstance(data, Path) else "the image"
    image = _rgb(_in_srgb(_open(io.BytesIO(data) if isinstance(data, bytes) else data, name), name), name)
    height, width = size or image.size[::-1]
    if image.size != (width, height):
        before = image.size
        box = _crop(before, (width, height))
        image = image.crop(box).resize((width, height), Image.Resampling.LANCZOS)
        notice(f"{name}: {_size(before)} {_cut(before, box)}resampled to {_size((width, height))}")
    return np.asarray(image)


def read_mask(data: bytes | Path, size: tuple[int, int], like: tuple[int, int] | None = None) -> Bools:
    """Read a mask as bool [h, w] of ``size`` (height, width): True where it is white, so that the place is resampled.

    A pixel is white if its luminance times its opacity is at least half. A cell of the result is True if any pixel in
    it is white, so that a thin stroke is kept.

    Args:
        data: a file or its bytes.
        like: (height, width) of the image that the mask belongs to, cropped by :func:`read_image` to the aspect ratio
            of ``size``; the mask is cropped alike. None = the mask covers what ``size`` covers.

    Raises:
        BadInput: it cannot be read, has no white pixel, or is of another aspect ratio than the image.
    """
    name = f"the mask {data}" if isinstance(data, Path) else "the mask"
    image = _open(io.BytesIO(data) if isinstance(data, bytes) else data, name)
    white = _white(image, name)
    if not white.any():
        hint = " (black strokes on a transparent ground: draw in white)" if image.has_transparency_data else ""
        raise BadInput(f"{name} is empty: no pixel is white, and white marks what is resampled{hint}")
    across = (size[1], size[0])
    if like is None:
        like = size
    if abs(white.shape[1] * like[0] - white.shape[0] * like[1]) > max(like):
        raise BadInput(
            f"{name} is {_size(white.shape[::-1])}, the image {_size(like[::-1])}: they must have one aspect ratio"
        )
    left, top, right, bottom = _crop(white.shape[::-1], across)
    rows, columns = _edges(top, bottom, size[0]), _edges(left, right, size[1])
    found = np.zeros(size, np.bool_)
    for row, (first, last) in enumerate(rows):
        band: Bools = np.any(white[first:last], axis=0)
        found[row] = [band[start:end].any() for start, end in columns]
    if not found.any():
        raise BadInput(f"{name}: its white pixels are outside the part of the image that is used")
    return found


def mask_png(mask: Bools) -> bytes:
    """Return a mask [h, w] as a black and white PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def image_size(data: bytes | Path) -> tuple[int, int]:
    """Return (height, width) of an image, a file or its bytes, as it is seen, rotation applied."""
    name = data if isinstance(data, Path) else "the image"
    width, height = _open(io.BytesIO(data) if isinstance(data, bytes) else data, name).size
    return height, width


def _open(source: Path | io.BytesIO, name: object) -> Image.Image:
    try:
        with _without_bomb_warnings(), Image.open(source) as image:
            image.load()
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                notice(f"{name} has {frames} frames: the first is used")
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {name}") from error
    except Image.DecompressionBombError as error:
        raise BadInput(f"{name} has too many pixels: at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} are read") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError) as error:
        raise BadInput(f"{name} is not a readable image") from error


@contextmanager
def _without_bomb_warnings() -> Iterator[None]:
    """Silence Pillow's warning of images that have more than half of the pixels at which it refuses them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _convert(image: Image.Image, mode: str, name: str) -> Image.Image:
    try:
        return (image.convert("LA") if image.mode == "La" else image).convert(mode)
    except ValueError as error:
        raise BadInput(f"{name}: images of mode {image.mode} are not supported; save it as RGB") from error


def _in_srgb(image: Image.Image, name: str) -> Image.Image:
    """Return an image with the colour profile of its file applied."""
    data = image.info.get("icc_profile")
    if not data:
        return image
    over = _convert(image, "RGBA", name) if image.has_transparency_data else None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        said = ImageCms.getProfileDescription(profile).strip() or "its colour profile"
        if "sRGB" in said:
            return image
        plain = (over or image).convert(_PROFILED[image.mode])
        seen = ImageCms.profileToProfile(plain, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError):
        notice(f"{name}: its colour profile does not fit its colours and is ignored")
        return image
    assert seen is not None
    if over is not None:
        seen.putalpha(over.getchannel("A"))
    notice(f"{name}: its colours are converted from {said} to sRGB")
    return seen


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _GREY:
        grey, hidden = np.round(_grey(image, name) * 255).astype(np.uint8), _hidden(image)
        if hidden.any():
            notice(f"{name} {_TRANSPARENT}")
        grey[hidden] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        over = _convert(image, "RGBA", name)
        if np.asarray(over.getchannel("A")).min() < 255:
            notice(f"{name} {_TRANSPARENT}")
        ground = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(ground, over).convert("RGB")
    return _convert(image, "RGB", name)


def _grey(image: Image.Image, name: str) -> npt.NDArray[np.float64]:
    """One channel of more than 8 bits as 0..1: integers are of 16 bits, floats 0..255 as Pillow has them."""
    values = np.asarray(image, dtype=np.float64)
    most = 255.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > most:
        raise BadInput(f"{name}: grey values of mode {image.mode} must be 0..{most:g}; save it with 8 or 16 bits")
    if image.mode == "F" and 0 < values.max() <= 1:
        raise BadInput(f"{name}: its grey values are fractions up to 1; save it with 8 or 16 bits")
    return values / most


def _hidden(image: Image.Image) -> Bools:
    """Where an image of one channel with more than 8 bits is transparent: a PNG may name one value that is."""
    hidden: Bools = np.asarray(image) == image.info.get("transparency", -1)
    return hidden


def _white(image: Image.Image, name: str) -> Bools:
    if image.mode in _GREY:
        found: Bools = (_grey(image, name) >= 0.5) & ~_hidden(image)
        return found
    opacity: npt.NDArray[np.float64] | float = 1.0
    if image.has_transparency_data:
        image = _convert(image, "RGBA", name)
        opacity = np.asarray(image.getchannel("A"), dtype=np.float64) / 255
    luminance = np.asarray(_convert(_convert(image, "RGB", name), "L", name), dtype=np.float64) / 255
    white: Bools = luminance * opacity >= 0.5
    return white


def _crop(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest centred box (left, top, right, bottom) of ``wanted``'s aspect ratio in an image of ``size``, both
    (width, height), in whole pixels."""
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    width, height = (max(1, round(side * scale)) for side in wanted)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _edges(first: int, last: int, count: int) -> list[tuple[int, int]]:
    """The pixels (first, end) of each of ``count`` equal cells of ``first``..``last``, at least one per cell."""
    edges = np.round(np.linspace(first, last, count + 1), 6)
    starts, ends = np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int)
    return list(zip(starts.tolist(), np.maximum(ends, starts + 1).tolist(), strict=True))


def _cut(size: tuple[int, int], box: tuple[int, int, int, int]) -> str:
    share = 1 - (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
    return f"cropped around its centre ({100 * share:.0f} % are left out) and " if share > 0.005 else ""


def _size(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"
