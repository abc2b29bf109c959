"""Held-out metrics: they judge the images of finished searches and never guide one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt


class Metric(ABC):
    """A metric of a study, constructed without arguments. Any verifier can be a metric too, through the pool.

    Attributes:
        columns: names of the values; each fills a column ``metric_NAME`` of the trial table.
        processes: whether it works in processes of its own, which suits slow code; otherwise it works in a thread.
    """

    columns: ClassVar[tuple[str, ...]]
    processes: ClassVar[bool] = False

    @abstractmethod
    def judge(self, images: npt.NDArray[np.uint8], prompt: str) -> Mapping[str, Sequence[float]]:
        """Return the values [B] of images [B, h, w, 3] for a prompt, by column."""

    @classmethod
    def check(cls, prompt: str) -> None:
        """Raise ValueError where the metric cannot judge images of this prompt."""
        return

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        """Raise ValueError where the metric cannot judge images of this size in pixels."""
        return
