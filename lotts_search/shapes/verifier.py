"""The verifier of the shapes world. torch is imported when it first scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lotts_search.work.requests import Bytes, Floats

if TYPE_CHECKING:
    from lotts_search.shapes.reward.net import RewardNet

FOLDER = Path(__file__).parent / "models" / "shapes-reward"


class ShapesReward:
    """``shapes-reward``: the share of an image, 0..1, that a small learned network believes to be as the prompt asks.

    Words that name no place, colour, shape or background are ignored, quality words among them.
    """

    name = "shapes-reward"
    requirements: tuple[str, ...] = ()

    def __init__(self, net: RewardNet):
        self.net = net

    @classmethod
    def load(cls, folder: str | Path | None = None) -> ShapesReward:
        """The verifier in ``folder``, by default the one that comes with the package.

        Raises:
            BadInput: there is no such model.
            Failure: its files are broken.
        """
        from lotts_search.shapes.reward.net import load_reward

        return cls(load_reward(FOLDER if folder is None else Path(folder)))

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Scores [B] in 0..1 of uint8 images [B, 64, 64, 3] for ``prompts`` [B]; rows do not affect each other."""
        from lotts_search.shapes.reward.net import predict, quality

        return quality(predict(self.net, prompts, images)).cpu().numpy().astype(np.float32)
