"""Try a verifier in its environment, on a random checkpoint where it can make one."""

from __future__ import annotations

import inspect
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lotts_search.errors import Failure
from lotts_search.verifiers.environments.hosted import import_hosted, load_hosted

CLOSE = 1e-3
"""Largest difference of an image's score alone and in a call."""


def check_verifier_there(verifier: type[Any], name: str, folder: Path | None = None) -> str:
    """Load a verifier in its environment and score random images; return what was checked.

    A class method ``rehearse(folder)`` of the verifier writes a small random checkpoint and returns the settings that load
    it; without one, only its module is imported.

    Args:
        name: registered name or ``package.module:Class``.
        folder: of all environments; None = the user's.

    Raises:
        Failure: the environment is not ready, or the verifier fails there, or the score of an image depends on its place in
            a call.
    """
    if not inspect.ismethod(getattr(verifier, "rehearse", None)):
        import_hosted(verifier, name, folder)
        return "its module can be imported"
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 64, 3), np.uint8)
    prompts = ["a red star on the snow", "a blue fox", "a photo of a ring"]
    with TemporaryDirectory(prefix="lotts-search-") as temporary:
        hosted = load_hosted(verifier, {}, name, folder, rehearse={"folder": temporary})
        try:
            together = hosted.score(prompts, images)
            alone = np.array([hosted.score(prompts[i : i + 1], images[i : i + 1])[0] for i in (2, 0, 1)])[[1, 2, 0]]
        finally:
            hosted.close()
    if not np.isfinite(together).all():
        raise Failure(f"verifier {name!r} scores random images as {together.tolist()}")
    if not np.abs(together - alone).max() < CLOSE:
        raise Failure(
            f"verifier {name!r} mixes up its images: {together.tolist()} in one call, {alone.tolist()} one by one"
        )
    return f"it scores random images, on random weights, as {', '.join(f'{score:.3f}' for score in together)}"
