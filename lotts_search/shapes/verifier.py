"""The verifier of the shapes world. torch is imported when it is loaded."""

from __future__ import annotations

from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lotts_search.errors import BadInput
from lotts_search.shapes.world.render import SIZE
from lotts_search.verifiers.networks import Dtype, place
from lotts_search.work.requests import Bytes, Floats

if TYPE_CHECKING:
    from torch import Tensor

    from lotts_search.shapes.reward.net import RewardNet

FOLDER = Path(__file__).parent / "models" / "shapes-reward"
PREDICTIONS = FOLDER.with_name("shapes-reward-x0")


class ShapesReward:
    """``shapes-reward``: a small network's estimate of how much of an image matches its prompt, 0..1.

    Words that name no place, colour, shape or background are ignored, including quality words.
    """

    name = "shapes-reward"
    requirements: tuple[str, ...] = ()
    folder = FOLDER

    def __init__(self, net: RewardNet):
        from lotts_search.shapes.reward.net import encode

        self.net = net
        self._encoded = lru_cache(maxsize=256)(partial(encode, net))

    @classmethod
    def load(cls, weights: str | None = None, dtype: Dtype = "float32") -> ShapesReward:
        """Load the verifier.

        Args:
            weights: folder with a model like the package's own; none = that.
            dtype: precision of the image tower. bfloat16 takes half of the time on a CPU with AMX; scores differ by some
                thousandths.

        Raises:
            BadInput: the folder has no such model, or there is no such precision.
            Failure: its files are broken.
        """
        from lotts_search.shapes.reward.net import load_reward

        net = load_reward(cls.folder if weights is None else Path(weights))
        net.picture.to(place(cls.name, "cpu", dtype)[1])
        return cls(net)

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        """Raise BadInput unless images have the size of the shapes world."""
        if (height, width) != (SIZE, SIZE):
            raise BadInput(
                f"shapes-reward scores the embedded models' images of {SIZE}x{SIZE} pixels alone, not {height}x{width}"
            )

    @cached_property
    def flops(self) -> float:
        """Those of an image with its prompt."""
        import torch

        from lotts_search.backbones.flops import count_flops
        from lotts_search.shapes.reward.net import MAX_WORDS, RewardNet

        # A new network is in training mode, whose layers run as single operations that can be counted.
        images = (1, 3, SIZE, SIZE)
        return count_flops(
            lambda: RewardNet(self.net.config),
            lambda net: net(torch.empty(images), torch.ones(1, MAX_WORDS, dtype=torch.int64)),
        )

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return scores [B] in 0..1 of uint8 images [B, 64, 64, 3] for ``prompts`` [B]; rows are independent."""
        from lotts_search.shapes.reward.net import quality

        return quality(self.logits(prompts, images)).cpu().numpy().astype(np.float32)

    def logits(self, prompts: list[str], images: Bytes) -> Tensor:
        """Return the logits [B, 10] that each of the nine cells and the background match the prompt. Recent prompts are not
        encoded again."""
        from lotts_search.shapes.reward.net import predict

        return predict(self.net, [self._encoded(prompt) for prompt in prompts], images)


class ShapesRewardX0(ShapesReward):
    """``shapes-reward-x0``: the same network, trained further to score an x0 prediction, however blurred, as ``shapes-reward`` will
    score the finished image (:mod:`lotts_search.shapes.reward.predictions`)."""

    name = "shapes-reward-x0"
    folder = PREDICTIONS
