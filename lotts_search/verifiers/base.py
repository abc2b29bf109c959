"""The interface of verifiers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Verifier(Protocol):
    """Scores images for prompts, higher is better. Its arguments and results are plain texts and numpy arrays.

    A class method ``load`` creates it. The arguments of ``load``, with types and defaults, are the verifier's settings
    (:class:`lotts_search.verifiers.spec.VerifierSpec`).

    Attributes:
        name: registered name.
        requirements: pip requirements beyond the project's own; Ray installs them in the actor's environment.

    Optional attributes:
        batch: most images in one call; without it the pool's (16).
        pad: False where a score does not depend on the other images of its call, or where each image costs: calls then
            have only the images that wait. Without it calls are filled to a fixed size by repeating their own images.
        remote: True where images are sent to a server, which takes time or money: a search that names no strategy then asks for
            few scores.
        flops: floating-point operations of one score; without it they are not known, and count as 0.
        environment: recipe of an environment whose Python runs the verifier, of this package (``"hpsv2-package"``) or a
            TOML file beside the verifier's module (:mod:`lotts_search.verifiers.environments.recipe`).
        check: a class method ``check(prompt)`` that raises ValueError for a prompt that the verifier cannot score. It is
            called for all prompts before anything is loaded, also with those settings that are its arguments.
        check_size: a class method ``check_size(height, width)`` that raises ValueError for a size of images, in pixels, that
            it cannot score. It is called where a model's folder tells the size.
        close: called when the pool closes.
    """

    name: str
    requirements: tuple[str, ...]

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the scores [B] of images [B, h, w, 3] for ``prompts`` [B]."""
