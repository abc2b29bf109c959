"""Features of shapes images for metrics of whole sets. torch is imported when they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from lotts_search.errors import BadInput
from lotts_search.shapes.verifier import FOLDER
from lotts_search.work.requests import Bytes, Floats

if TYPE_CHECKING:
    from lotts_search.shapes.reward.net import RewardNet


class ShapesFeatures:
    """What the image tower of ``shapes-reward`` sees, 128 numbers: the mean over the cells, of images of 64×64 pixels."""

    def __init__(self, net: RewardNet):
        self._net = net

    @classmethod
    def load(cls) -> Self:
        """Load the embedded network."""
        from lotts_search.shapes.reward.net import load_reward

        return cls(load_reward(FOLDER))

    def embed(self, images: Bytes) -> Floats:
        """Return the features [B, 128] of uint8 images [B, 64, 64, 3].

        Raises:
            BadInput: the images have another size.
        """
        import torch

        if images.shape[1:] != (64, 64, 3):
            height, width = images.shape[1:3]
            raise BadInput(f"the features of shapes are those of images of 64×64 pixels, not {width}×{height}")
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            found: Floats = self._net.picture(pixels).mean(dim=1).numpy()
        return found
