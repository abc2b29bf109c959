"""The native verifiers score as the packages do, in environments of their own: `make parity`.

`LOTTS_PARITY=full` compares checkpoints of the published sizes, too (2 GB each).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lotts_search.verifiers.environments.hosted import load_hosted
from lotts_search.verifiers.environments.prepare import Environment
from lotts_search.verifiers.environments.recipe import recipe_of
from lotts_search.verifiers.hpsv2 import HPSv2
from lotts_search.verifiers.hpsv2_package import HPSv2Package
from lotts_search.verifiers.image_reward import ImageReward
from lotts_search.verifiers.image_reward_package import ImageRewardPackage

pytestmark = [pytest.mark.slow, pytest.mark.parity]

CLOSE = 1e-5
PROMPTS = ["a red star on the snow", "a blue fox", "a photo of a ring", "a red star in the snow with two green rings"]
SIZES = [(224, 224), (96, 64), (300, 401), (640, 512)]
FULL = pytest.mark.skipif(os.environ.get("LOTTS_PARITY") != "full", reason="LOTTS_PARITY=full compares full sizes, too")


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=FULL)], ids=["small", "full"])
@pytest.mark.parametrize(
    ("native", "package"), [(ImageReward, ImageRewardPackage), (HPSv2, HPSv2Package)], ids=["image-reward", "hpsv2"]
)
def test_native_scores_are_those_of_the_package(native: Any, package: Any, small: bool, tmp_path: Path) -> None:
    recipe = recipe_of(package)
    assert recipe is not None
    if Environment.of(recipe).state != "ready":
        pytest.skip(f"run: lotts-search verifier-env {package.name}")
    there = load_hosted(package, {}, rehearse={"folder": str(tmp_path), "small": small})  # writes a random checkpoint
    here = native.load(weights=str(tmp_path))
    rng = np.random.default_rng(0)
    spread: list[float] = []
    try:
        for height, width in SIZES:
            coarse = rng.integers(0, 256, (len(PROMPTS), 4, 4, 3), np.uint8)
            blocks = np.kron(coarse, np.ones((1, -(-height // 4), -(-width // 4), 1), np.uint8))[:, :height, :width]
            images = blocks // 2 + rng.integers(0, 100, (len(PROMPTS), height, width, 3), np.uint8)
            theirs = there.score(PROMPTS, images)
            ours = here.score(PROMPTS, images)
            print(f"{native.name} {height}×{width}: differs by {np.abs(ours - theirs).max():.1e} of {theirs}")
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE)
            spread += theirs.tolist()
    finally:
        there.close()
    assert np.ptp(spread) > 100 * CLOSE, "the images have nearly equal scores, so the test shows nothing"
