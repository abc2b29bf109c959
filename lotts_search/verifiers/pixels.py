"""From uint8 images to the input of a vision tower: the preprocessing of CLIP, torchvision and HPSv2.

torch is imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lotts_search.work.requests import Bytes

if TYPE_CHECKING:
    import torch

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training images, by channel."""


def cropped(images: Bytes, side: int, half: Callable[[float], int] = int) -> torch.Tensor:
    """Resize the short side of images to ``side`` with PIL's bicubic filter, and crop the centre.

    Args:
        images: uint8 [B, h, w, 3] of any size.
        half: rounds half a pixel of an odd margin: ``int`` as transformers' CLIPImageProcessor, ``round`` as
            torchvision's CenterCrop, on which ImageReward and OpenAI's CLIP build.

    Returns:
        float32 [B, 3, side, side] in 0..1.
    """
    import torch

    height, width = images.shape[1:3]
    short = min(height, width)
    tall, wide = (int(side * edge / short) for edge in (height, width))
    top, left = half((tall - side) / 2), half((wide - side) / 2)
    squares = [
        np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC))[
            top : top + side, left : left + side
        ]
        for image in images
    ]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


def padded(images: Bytes, side: int) -> torch.Tensor:
    """Resize the long side of images to ``side`` with a bicubic filter with antialiasing, and pad the short one with
    zeros on both sides, as HPSv2 does. An image of the right size is not resampled.

    Args:
        images: uint8 [B, h, w, 3] of any size.

    Returns:
        float32 [B, 3, side, side]; bicubic interpolation may leave 0..1 a little.
    """
    import torch
    from torch.nn import functional

    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    scale = side / max(images.shape[1:3])
    height, width = (max(1, round(edge * scale)) for edge in images.shape[1:3])
    if scale != 1:
        pixels = functional.interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=True)
    top, left = (side - height) // 2, (side - width) // 2
    return functional.pad(pixels, (left, side - width - left, top, side - height - top))


def normalized(pixels: torch.Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> torch.Tensor:
    """Subtract the mean and divide by the standard deviation, by channel of [B, 3, h, w]."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
