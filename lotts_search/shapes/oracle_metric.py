"""The metric of the shapes world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lotts_search.shapes.world.render import SIZE
from lotts_search.shapes.world.scene import parse_caption
from lotts_search.verifiers.metric import Metric


class ShapesOracle(Metric):
    """``shapes-oracle``: judges shapes images by rendering rules, see :mod:`lotts_search.shapes.world.oracle`.

    ``oracle`` is the quality, 0..1; ``perfect`` is 1 for an image without any defect, else 0.
    """

    columns = ("oracle", "perfect")
    processes = True

    def judge(self, images: npt.NDArray[np.uint8], prompt: str) -> Mapping[str, Sequence[float]]:
        """Return quality and perfection [B] of images [B, 64, 64, 3] for a caption of the shapes world."""
        from lotts_search.shapes.world.oracle import judge_many

        verdicts = judge_many(images, [parse_caption(prompt)] * len(images))
        return {"oracle": [v.quality for v in verdicts], "perfect": [float(v.perfect) for v in verdicts]}

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        """Raise ValueError unless images have the size of the shapes world."""
        if (height, width) != (SIZE, SIZE):
            raise ValueError(f"shapes-oracle judges images of {SIZE}x{SIZE} pixels alone, not {height}x{width}")

    @classmethod
    def check(cls, prompt: str) -> None:
        """Raise ValueError where the prompt is no caption of the shapes world."""
        try:
            parse_caption(prompt)
        except ValueError as error:
            raise ValueError(f"shapes-oracle judges scenes of the shapes world alone: {error}") from error
