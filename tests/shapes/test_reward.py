"""The learned verifier: the truth of its training data, its network, its training, and the shipped model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from lotts_search.errors import BadInput, Failure
from lotts_search.shapes.denoisers.data import HIGH
from lotts_search.shapes.reward.data import AREAS, altered, truths
from lotts_search.shapes.reward.net import WORDS, RewardConfig, RewardNet, load_reward, save_reward, word_ids
from lotts_search.shapes.reward.training import _mirrored, auc, measure, train_reward
from lotts_search.shapes.verifier import FOLDER, ShapesReward
from lotts_search.shapes.world.render import render, to_uint8
from lotts_search.shapes.world.scene import Object, Scene, scenes


@pytest.fixture(scope="module")
def verifier() -> ShapesReward:
    return ShapesReward.load()


def test_only_known_words_count_and_in_order() -> None:
    ids = word_ids("Top left RED circle, top blue star on gray")
    words = [WORDS[i - 1] for i in ids if i]
    assert words == ["top", "left", "red", "circle", ",", "top", "blue", "star", "on", "gray"]
    assert np.array_equal(ids, word_ids("A high-quality image of top left red circle, top blue star on gray"))
    longest = Scene(tuple(Object(c, "red", "ring") for c in range(9)), "gray").caption
    assert (word_ids(longest) > 0).sum() == len(longest.replace(",", " ,").split())  # nothing is truncated


def test_altered_captions_are_wrong_where_they_say() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for scene in scenes("tune", 80):
        caption, right, ground = altered(scene, rng)
        assert caption.split == "train"
        before, after = ({o.cell: o for o in s.objects} for s in (scene, caption))
        assert right.tolist() == [before.get(c) == after.get(c) for c in range(9)]
        assert ground == (scene.background == caption.background)
        wrong += int((~right).sum())
    assert wrong > 60


def test_training_truth_is_reproducible_and_matches_the_images() -> None:
    data, again = truths(40, 3), truths(40, 3)
    assert np.array_equal(data.images, again.images) and np.array_equal(data.quality, again.quality)
    assert data.quality.min() >= 0 and data.quality.max() <= 1 and 0.4 < data.quality.mean() < 0.9
    assert all(s.split == "train" for s in data.scenes)
    # Cells of full quality look like a render of their scene, up to pose; others do not.
    plain = np.stack([render(s, np.random.default_rng(0)).image for s in data.scenes])
    difference = np.abs(data.images / 255.0 - plain).mean(axis=-1)
    error = np.stack(
        [difference[:, 21 * (c // 3) : 21 * (c // 3) + 21, 21 * (c % 3) : 21 * (c % 3) + 21] for c in range(9)], axis=1
    ).mean(axis=(2, 3))
    assert auc(-error[data.quality == 1], -error[data.quality < 0.3]) > 0.95


def test_areas_are_those_of_the_shapes() -> None:
    assert AREAS["circle"] == pytest.approx(np.pi * 9.3**2, rel=0.01)
    assert AREAS["square"] == pytest.approx(16.4**2, rel=0.01)


def test_a_mirrored_scene_is_the_scene_of_the_mirrored_image() -> None:
    scene = Scene((Object(0, "red", "circle"), Object(4, "blue", "square"), Object(8, "cyan", "ring")), "black")
    mirrored = _mirrored(scene)
    assert [(o.cell, o.colour) for o in mirrored.objects] == [(2, "red"), (4, "blue"), (6, "cyan")]
    assert _mirrored(mirrored) == scene
    a, b = (render(s, np.random.default_rng(0)).image for s in (scene, mirrored))
    assert np.abs(a[:, ::-1] - b).mean() < 0.03 < np.abs(a - b).mean()


def test_auc_is_the_rank_statistic() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 20, 70).astype(float), rng.integers(-5, 15, 50).astype(float)
    assert auc(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / (70 * 50))
    assert auc(np.ones(3), np.zeros(3)) == 1 and auc(np.ones(3), np.ones(2)) == 0.5


def test_training_learns_and_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    lines: list[str] = []

    def losses(out: str, *parts: int) -> None:
        for seen in parts:
            train_reward(tmp_path / out, images=seen, distinct=24, batch=8, state=tmp_path / f"{out}.state",
                         measure_on=0, describe=lines.append)  # fmt: skip

    losses("whole", 8 * 24)
    first, last = (float(line.split("matching ")[1].split()[0]) for line in (lines[0], lines[-1]) if "matching" in line)
    assert last <= first
    losses("parts", 8 * 24)
    losses("parts", 8 * 24)  # already finished
    assert any("resuming at step 24 of 24" in line for line in lines)
    whole, parts = (load_reward(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_saved_network_is_the_same_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = RewardNet(RewardConfig(width=32, features=64, channels=(8, 16, 16))).eval()
    save_reward(net, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    prompts = ["top red ring on gray", "left blue star on white", ""]
    assert torch.equal(
        ShapesReward(net).logits(prompts, images), ShapesReward.load(str(tmp_path)).logits(prompts, images)
    )


def test_missing_and_broken_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no shapes-reward model in"):
        ShapesReward.load(tmp_path)
    save_reward(RewardNet(RewardConfig()), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(Failure, match="is broken"):
        ShapesReward.load(tmp_path)


def test_the_model_is_small() -> None:
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 5 * 2**20


def test_the_model_distinguishes_held_out_renders(verifier: ShapesReward) -> None:
    figures = measure(verifier.net, 120, split="test")
    assert figures["AUC undamaged against damaged"] >= 0.9
    assert figures["AUC right caption against one object wrong"] >= 0.9
    assert figures["right caption preferred to its wrong one"] >= 0.95


def test_scores_are_shares_and_rows_are_independent(verifier: ShapesReward) -> None:
    wanted = scenes("test", 5)
    rng = np.random.default_rng(0)
    images = np.stack([to_uint8(render(s, rng, damage=0.4).image) for s in wanted])
    prompts = [s.caption for s in wanted]
    together = verifier.score(prompts, images)
    assert together.dtype == np.float32 and together.shape == (5,)
    assert (together >= 0).all() and (together <= 1).all() and np.ptp(together) > 0.01
    for i in range(5):
        alone = verifier.score(prompts[i : i + 1], images[i : i + 1])
        assert alone[0] == pytest.approx(together[i], abs=1e-6)
    # In a call of the same size the other rows do not change a single bit.
    others = np.concatenate([images[:1], np.zeros_like(images[1:])])
    assert verifier.score([prompts[0], "", "", "", ""], others)[0] == together[0]
    quality_words = verifier.score([HIGH.format(p) for p in prompts], images)
    assert np.array_equal(quality_words, together)


def test_a_prompt_is_encoded_once_and_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, counted = ShapesReward.load(), list[int]()
    monkeypatch.setattr(
        verifier.net.text,
        "forward",
        lambda ids, plain=verifier.net.text.forward: counted.append(len(ids)) or plain(ids),
    )
    wanted = scenes("test", 3)
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    prompts = [wanted[i].caption for i in (0, 1, 0, 2, 2, 0)]
    scores = verifier.score(prompts, images)
    verifier.score(prompts[::-1], images)
    assert counted == [1, 1, 1]
    # As if all went through both towers in one call.
    ids = torch.from_numpy(np.stack([word_ids(prompt) for prompt in prompts]))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = verifier.net(pixels, ids).sigmoid().mean(1)
    assert scores == pytest.approx(expected.numpy(), abs=1e-6)


def test_half_precision_hardly_changes_a_score(verifier: ShapesReward) -> None:
    wanted, rng = scenes("tune", 24), np.random.default_rng(0)
    images = np.stack([to_uint8(render(s, rng, damage=0.4).image) for s in wanted])
    prompts = [s.caption for s in wanted]
    full, half = verifier.score(prompts, images), ShapesReward.load(dtype="bfloat16").score(prompts, images)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.01
    with pytest.raises(BadInput, match=r"dtype of verifier shapes-reward must be .*, not 'int8'"):
        ShapesReward.load(dtype="int8")  # type: ignore[arg-type]


def test_more_damage_and_more_mistakes_score_lower(verifier: ShapesReward) -> None:
    wanted = scenes("test", 40)
    means = []
    for damage in (0.0, 0.3, 0.8):
        images = np.stack([to_uint8(render(s, np.random.default_rng(i), damage=damage).image)
                             for i, s in enumerate(wanted)])  # fmt: skip
        means.append(float(verifier.score([s.caption for s in wanted], images).mean()))
    assert means[0] > 0.9 and means[0] > means[1] + 0.1 > means[2] + 0.2
    clean = np.stack([to_uint8(render(s, np.random.default_rng(i)).image) for i, s in enumerate(wanted)])
    fewer = [replace(s, objects=s.objects[2:]).caption for s in wanted]  # the images then have two objects too many
    other_ground = [replace(s, background="white" if s.background != "white" else "black").caption for s in wanted]
    for prompts in (fewer, other_ground):
        assert float((verifier.score(prompts, clean) < verifier.score([s.caption for s in wanted], clean)).mean()) > 0.9


def test_images_of_another_size_are_refused(verifier: ShapesReward) -> None:
    with pytest.raises(BadInput, match=r"uint8 images \[64, 64, 3\]"):
        verifier.score(["top red ring on gray"], np.zeros((1, 32, 32, 3), dtype=np.uint8))
