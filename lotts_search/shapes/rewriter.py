"""``shapes-rewriter``: revised prompts for the embedded models, without a language model.

The learned reward says, cell by cell, how far a picture is as the prompt asks; the prompts put stress on the phrases that
it finds least satisfied. torch is imported when it first writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np

from lotts_search.masks import HIGH_QUALITY
from lotts_search.shapes.scene import Scene, parse_caption
from lotts_search.verifiers.shapes import ShapesReward
from lotts_search.work import Rewrite


@dataclass
class ShapesRewriter:
    """Stresses what shapes-reward finds least satisfied: the phrase of that object is said twice, in its place.

    The first prompt stresses the least satisfied object, the second asks for high quality, with the words that the model
    was trained with, the third does both, and so on with the next objects. Prompts of other worlds are refused.

    Attributes:
        timeout: seconds after which an answer is not waited for any more.
    """

    timeout: float = 60.0

    requirements: ClassVar[tuple[str, ...]] = ()
    batch: ClassVar[int] = 16
    parallel: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._reward: ShapesReward | None = None

    def rewrite(self, requests: Sequence[Rewrite]) -> list[list[str]]:
        """Revised prompts for pictures [64, 64, 3].

        Raises:
            ValueError: a prompt is no caption of a shapes scene.
        """
        from lotts_search.shapes.reward import predict

        scenes = [parse_caption(request.prompt) for request in requests]
        self._reward = self._reward or ShapesReward.load()
        prompts, images = [r.prompt for r in requests], np.stack([r.image for r in requests])
        satisfied = predict(self._reward.net, prompts, images).cpu().numpy()
        return [
            _stressed(request.prompt, scene, row, request.count)
            for request, scene, row in zip(requests, scenes, satisfied, strict=True)
        ]


def _stressed(
    prompt: str, scene: Scene, satisfied: np.ndarray[tuple[int], np.dtype[np.float32]], count: int
) -> list[str]:
    """``count`` different prompts, as far as there are so many; ``satisfied`` [10] are the reward's logits."""
    objects = sorted(scene.objects, key=lambda one: float(satisfied[one.cell]))

    def versions() -> Sequence[str]:
        found = []
        for number, one in enumerate(objects):
            # Not within "bottom left red circle" where "left red circle" is meant.
            pattern = rf"(?<!top )(?<!bottom )\b{re.escape(one.phrase)}\b"
            twice = re.sub(pattern, f"{one.phrase}, {one.phrase}", prompt, count=1)
            found.append(twice)
            if number == 0:
                found.append(HIGH_QUALITY.format(prompt))
            found.append(HIGH_QUALITY.format(twice))
        return found

    return list(islice(versions(), count))
