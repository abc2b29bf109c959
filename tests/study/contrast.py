"""A metric that a user might write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lotts_search.verifiers.metric import Metric


class Contrast(Metric):
    """The darkest and the brightest value of an image."""

    columns = ("darkest", "brightest")

    def judge(self, images: npt.NDArray[np.uint8], prompt: str) -> Mapping[str, Sequence[float]]:
        flat = images.reshape(len(images), -1).astype(float)
        return {"darkest": flat.min(axis=1).tolist(), "brightest": flat.max(axis=1).tolist()}

    @classmethod
    def check(cls, prompt: str) -> None:
        if "no " in prompt:
            raise ValueError(f"no contrast is known of {prompt!r}")
