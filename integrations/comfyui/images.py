"""Images and masks of ComfyUI, tensors of floats 0..1, as PNG files and back. numpy, Pillow and torch are ComfyUI's own; they are
imported when they are used, so that the nodes can be loaded and tested without torch."""

from __future__ import annotations

import base64
import io
from typing import Any


def _array(tensor: Any) -> Any:
    import numpy as np

    return np.asarray(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor, dtype=np.float32)


def _png(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def image_files(image: Any) -> list[bytes]:
    """Return each image of an IMAGE [B, H, W, C] as a PNG file; of more than 3 channels the first 3 count."""
    return [_png((one.clip(0, 1)[..., :3] * 255).round().astype("uint8")) for one in _array(image)]


def mask_files(mask: Any, count: int) -> list[bytes]:
    """Return a MASK [B, H, W] or [H, W] as a black and white PNG file for each of ``count`` images: white from 0.5.

    Raises:
        ValueError: there are neither 1 nor ``count`` masks.
    """
    masks = _array(mask)
    masks = masks[None] if masks.ndim == 2 else masks
    if len(masks) not in (1, count):
        raise ValueError(f"there are {len(masks)} masks for {count} images: give one, or one for each image")
    files = [_png((one >= 0.5).astype("uint8") * 255) for one in masks]
    return files * (count // len(files))


def picture(b64: str) -> Any:
    """Return an image of the server as one of Pillow."""
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")


def image_of(pictures: list[Any]) -> Any:
    """Return pictures of one size as an IMAGE [B, H, W, 3]; without torch as an array."""
    import numpy as np

    array = np.stack([np.asarray(one, dtype=np.float32) / 255 for one in pictures])
    try:
        import torch
    except ImportError:
        return array
    return torch.from_numpy(array)
