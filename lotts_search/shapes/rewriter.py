"""``shapes-rewriter``: revised prompts for the embedded models, without a language model.

The learned reward estimates for each cell how well the image matches the prompt; the revised prompts emphasize the
objects that match least. torch is imported at the first rewrite.
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
"""The word of the training captions for single undamaged objects."""


@dataclass
class ShapesRewriter:
    """Emphasizes the objects that shapes-reward scores lowest, with the quality words of the training captions.

    The first prompt calls the worst object good (``top left good red circle``), the second the worse half of the
    objects, the third the whole image (``A high-quality image of …``), the fourth all objects, and the others one
    further object each. Only captions of shapes scenes are accepted.

    Attributes:
        timeout: seconds to wait for an answer.
    """

    timeout: float = 60.0

    requirements: ClassVar[tuple[str, ...]] = ()
    batch: ClassVar[int] = 16
    parallel: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._reward: ShapesReward | None = None

    def rewrite(self, requests: Sequence[Rewrite]) -> list[list[str]]:
        """Return the revised prompts of each request; its image is [64, 64, 3].

        Raises:
            ValueError: a prompt is not a caption of a shapes scene.
        """
        scenes = [parse_caption(request.prompt) for request in requests]
        self._reward = self._reward or ShapesReward.load()
        prompts, images = [r.prompt for r in requests], np.stack([r.image for r in requests])
        logits = self._reward.logits(prompts, images).cpu().numpy()
        revised = []
        for request, scene, row in zip(requests, scenes, logits, strict=True):
            order = np.argsort([row[one.cell] for one in scene.objects], kind="stable")
            revised.append(_versions(request.prompt, [scene.objects[place] for place in order], request.count))
        return revised


def _versions(prompt: str, objects: Sequence[Object], count: int) -> list[str]:
    """Return up to ``count`` different prompts; ``objects`` are sorted from worst to best."""
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
    """Return the prompt with ``good`` before the colours of these objects."""
    for one in objects:
        place, rest = PLACES[one.cell], f"{one.colour} {one.shape}"
        # "left red circle" must not match within "top left red circle" or "bottom left red circle".
        prompt = re.sub(rf"(?<!top )(?<!bottom )\b{place} {rest}\b", f"{place} {WORD} {rest}", prompt, count=1)
    return prompt
