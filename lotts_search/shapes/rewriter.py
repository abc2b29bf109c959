"""``shapes-rewriter``: revised prompts for the embedded models, without a language model.

The learned reward says, cell by cell, how far an image is as the prompt asks; the prompts put stress on the phrases that
it finds least satisfied. torch is imported when it first writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lotts_search.shapes.verifier import ShapesReward
from lotts_search.shapes.world.scene import PLACES, Object, parse_caption
from lotts_search.work.masks import HIGH_QUALITY
from lotts_search.work.requests import Rewrite

WORD = "good"
"""What training captions call single objects that are whole."""


@dataclass
class ShapesRewriter:
    """Stresses what shapes-reward finds least satisfied, with the quality words that the models were trained with.

    The first prompt calls the least satisfied object good (``top left good red circle``), the second the less satisfied
    half of the objects, the third the whole image (``A high-quality image of …``), the fourth all objects, and the
    others one further object each. Prompts of other worlds are refused.

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
        """Revised prompts for images [64, 64, 3].

        Raises:
            ValueError: a prompt is no caption of a shapes scene.
        """
        from lotts_search.shapes.reward.net import predict

        scenes = [parse_caption(request.prompt) for request in requests]
        self._reward = self._reward or ShapesReward.load()
        prompts, images = [r.prompt for r in requests], np.stack([r.image for r in requests])
        satisfied = predict(self._reward.net, prompts, images).cpu().numpy()
        found = []
        for request, scene, row in zip(requests, scenes, satisfied, strict=True):
            order = np.argsort([row[one.cell] for one in scene.objects], kind="stable")
            found.append(_stressed(request.prompt, [scene.objects[place] for place in order], request.count))
        return found


def _stressed(prompt: str, objects: Sequence[Object], count: int) -> list[str]:
    """``count`` different prompts, as far as there are so many; the least satisfied objects come first."""
    half = (len(objects) + 1) // 2
    versions = [
        _praised(prompt, objects[:1]),
        _praised(prompt, objects[:half]),
        HIGH_QUALITY.format(prompt),
        _praised(prompt, objects),
        *(_praised(prompt, [one]) for one in objects[1:]),
    ]
    return list(dict.fromkeys(versions))[:count]


def _praised(prompt: str, objects: Sequence[Object]) -> str:
    """The prompt with ``good`` before the colours of these objects."""
    for one in objects:
        place, rest = PLACES[one.cell], f"{one.colour} {one.shape}"
        # Not within "bottom left red circle" where "left red circle" is meant, nor within "top left".
        prompt = re.sub(rf"(?<!top )(?<!bottom )\b{place} {rest}\b", f"{place} {WORD} {rest}", prompt, count=1)
    return prompt
