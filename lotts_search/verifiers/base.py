"""What scores images."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Verifier(Protocol):
    """Scores images for prompts, higher is better. Only bytes and numpy arrays cross its border.

    Attributes:
        name: registered name.
        requirements: pip requirements beyond the project's own; Ray gives the actor an environment with them.
    """

    name: str
    requirements: tuple[str, ...]

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Scores [B] of images [B, h, w, 3] for ``prompts`` [B]."""
