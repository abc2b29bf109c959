"""The verifier that knows x0 predictions: its training images, its training, and the shipped model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lotts_search.engine.local_pool import LocalPool
from lotts_search.registry import load_backbone
from lotts_search.shapes.reward.net import load_reward
from lotts_search.shapes.reward.predictions import measure, predictions, train_on_predictions
from lotts_search.shapes.verifier import ShapesReward, ShapesRewardX0
from lotts_search.shapes.world.scene import scenes
from lotts_search.work.requests import Fresh, Sampling, Segment


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalPool]:
    with LocalPool(load_backbone("shapes-sd"), {}, 8, 1) as opened:
        yield opened


def test_the_last_prediction_is_the_plain_sample(pool: LocalPool) -> None:
    wanted = scenes("tune", 2)
    tracks = predictions(pool, wanted, seed=5, describe=lambda line: None)
    assert tracks.shape == (2, 10, 64, 64, 3)
    for row, scene in enumerate(wanted):
        sampling = Sampling.of(pool.info, scene.caption)
        plain = pool.submit(Segment(5, sampling, (f"seed {row}",), 10, noise=Fresh(row))).result().image
        assert np.array_equal(tracks[row, -1], plain)
    # Each prediction is nearer to the finished image than the one before, and the last step returns its prediction.
    errors = np.abs(tracks.astype(float) - tracks[:, -1:]).mean(axis=(0, 2, 3, 4))
    assert (np.diff(errors[:-1]) < 0).all() and errors[0] > 10 and errors[-2] == 0


def test_training_on_predictions_resumes_and_starts_from_the_verifier(tmp_path: Path) -> None:
    said: list[str] = []
    for images in (16, 32):
        train_on_predictions(
            tmp_path / "out", samples=2, images=images, batch=8, models=["shapes-sd"], describe=said.append
        )
    assert sum("sampled" in line for line in said) == 1 and "resuming at step 2 of 4" in said
    prompts = [scene.caption for scene in scenes("tune", 4)]
    images_ = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    new, old = ShapesReward(load_reward(tmp_path / "out")), ShapesReward.load()
    difference = np.abs(new.score(prompts, images_) - old.score(prompts, images_))
    assert 0 < difference.max() < 0.2


@pytest.mark.slow
def test_the_shipped_model_tells_early_which_samples_will_be_good(pool: LocalPool) -> None:
    verifiers = [ShapesRewardX0.load(), ShapesReward.load()]
    (ranks, best), (old_ranks, old_best) = measure(verifiers, pool, count=24, split="test")
    assert np.mean(best[:4]) > np.mean(old_best[:4]) + 0.01 and np.mean(ranks[1:4]) > np.mean(old_ranks[1:4])
    assert ranks[-1] > 0.88 and ranks[-1] > old_ranks[-1] - 0.05
