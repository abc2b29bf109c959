"""The region that a vision-language model calls wrong."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lotts_search.backbones.base import Backbone
from lotts_search.errors import BadInput, Failure, unknown
from lotts_search.localization.quality import image_of, shrink
from lotts_search.localization.select import from_heat, smooth
from lotts_search.settings import arguments
from lotts_search.verifiers.spec import VerifierSpec
from lotts_search.verifiers.vlm_judge import VlmJudge
from lotts_search.work.masks import JudgedMask
from lotts_search.work.requests import Locate, Located


class JudgedLocalization:
    """One localization by a judge; a :class:`~lotts_search.localization.plan.CallPlan`, because its reply takes seconds.

    Raises:
        BadInput: the source names no judge that gives boxes, or its endpoint cannot be reached.
    """

    def __init__(self, backbone: Backbone, work: Locate, source: JudgedMask):
        self._judge = judge_of(source.judge).judge
        self._source, self._prompt = source, work.sampling.prompt
        self._size = (backbone.info.latent[1], backbone.info.latent[2])
        self._image = image_of(backbone, work)

    def call(self) -> Located:
        """Ask the judge, and return the mask. The heat of a place is the number of boxes around it."""
        height, width = self._image.shape[:2]
        count = np.zeros((height, width), np.float32)
        for problem in self._judge.ask(self._prompt, self._image).problems:
            left, top, right, bottom = problem.box
            rows = slice(int(top * height), max(int(top * height) + 1, round(bottom * height)))
            columns = slice(int(left * width), max(int(left * width) + 1, round(right * width)))
            count[rows, columns] += 1
        heat = shrink(count, self._size)
        stages = {"boxes": heat, "smoothed": smooth(heat, self._source.smooth)}
        return from_heat(stages["smoothed"], self._source.ratio, self._size, stages)


@lru_cache(maxsize=16)
def judge_of(text: str) -> VlmJudge:
    """Load the judge of a mask source, once per process."""
    spec = VerifierSpec.parse(text)
    if spec.name != VlmJudge.name:
        raise unknown("judge", spec.name, [VlmJudge.name])
    settings = arguments(VlmJudge.load, spec.settings, f"verifier {spec.name!r}")
    try:
        found = VlmJudge.load(**settings)
    except Failure as error:
        raise BadInput(f"the judge of the mask source judged cannot be used: {error}") from error
    if found.judge.mode != "rubric" or not found.judge.boxes:
        raise BadInput(f"the mask source judged needs a judge with mode=rubric and boxes=true, not {text!r}")
    return found
