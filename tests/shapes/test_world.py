"""The shapes world: grammar, splits, renders with their truth, and training examples."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lotts_search.shapes.denoisers.data import (
    DAMAGE,
    DENSE_SHARE,
    HIGH,
    LIGHT_SHARE,
    LOW,
    OBJECT_RIGHT,
    OBJECT_SHARE,
    OBJECT_WORDS,
    TEMPLATES,
    WORD_RIGHT,
    WORD_SHARE,
    example,
)
from lotts_search.shapes.world.render import DAMAGE_THRESHOLD, Pose, cell_box, cell_grid, coverage, render
from lotts_search.shapes.world.scene import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    MIN_OBJECTS,
    PLACES,
    SHAPES,
    Object,
    Scene,
    parse_caption,
    random_scene,
    scenes,
)
from lotts_search.shapes.world.wrong_captions import one_wrong


def test_splits_never_overlap_and_have_their_shares() -> None:
    by_split = {split: {s.caption for s in scenes(split, 150)} for split in ("train", "tune", "test")}
    assert all(len(captions) == 150 for captions in by_split.values())
    assert not by_split["train"] & by_split["tune"] and not by_split["test"] & by_split["tune"]
    assert not by_split["train"] & by_split["test"]
    rng = np.random.default_rng(0)
    drawn = [random_scene(rng).split for _ in range(4000)]
    assert drawn.count("tune") / 4000 == pytest.approx(0.05, abs=0.015)
    assert drawn.count("test") / 4000 == pytest.approx(0.05, abs=0.015)


def test_a_split_is_the_same_every_time() -> None:
    assert scenes("test", 20) == scenes("test", 20)
    assert scenes("test", 20) != scenes("test", 20, seed=1)
    assert all(s.split == "tune" for s in scenes("tune", 20))


def test_scenes_have_six_to_nine_objects_in_distinct_cells_of_all_kinds() -> None:
    drawn = scenes("train", 300)
    assert {len(s.objects) for s in drawn} == set(range(MIN_OBJECTS, MAX_OBJECTS + 1)) == {6, 7, 8, 9}
    assert all(len({o.cell for o in s.objects}) == len(s.objects) for s in drawn)
    objects = [o for s in drawn for o in s.objects]
    assert {o.colour for o in objects} == set(COLOURS) and len(COLOURS) == 8
    assert {o.shape for o in objects} == set(SHAPES) and len(SHAPES) >= 6
    assert {o.cell for o in objects} == set(range(9))
    assert {s.background for s in drawn} == set(BACKGROUNDS)


def test_the_longest_caption_has_fewer_than_70_tokens() -> None:
    longest = Scene(tuple(Object(c, "orange", "triangle") for c in range(9)), "brown").caption
    for template in ("{}", HIGH, LOW):
        words = re.findall(r"[a-z]+|[^a-z\s]", template.format(longest).lower())
        assert len(words) + 2 < 70  # with the tokens of start and end


def test_captions_can_be_parsed() -> None:
    for scene in scenes("train", 200):
        assert parse_caption(scene.caption) == scene
        assert parse_caption(HIGH.format(scene.caption)) == scene
    assert parse_caption("a photo of bottom right blue star, top red ring on black, 4k") == Scene(
        (Object(PLACES.index("top"), "red", "ring"), Object(8, "blue", "star")), "black"
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a cat on gray", "not a shapes caption"),
        ("top red circle", "not a shapes caption"),
        ("top red circle, top blue star on gray", "named twice"),
    ],
)
def test_other_prompts_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_caption(prompt)


def test_one_wrong_changes_exactly_one_object() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for scene in scenes("tune", 60):
        wrong, cell = one_wrong(scene, rng)
        changed = set(scene.objects) ^ set(wrong.objects)
        assert len(changed) == 2 and {o.cell for o in changed} == {cell}
        a, b = changed
        assert (a.colour == b.colour) != (a.shape == b.shape)
        kinds.add(a.colour == b.colour)
    assert kinds == {True, False}


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_nearly_fill_their_cells_and_stay_inside(shape: str) -> None:
    cover = coverage(shape, Pose(), *cell_grid(4))
    rows, columns = np.flatnonzero(cover.max(axis=1) > 0.5), np.flatnonzero(cover.max(axis=0) > 0.5)
    for span in (rows, columns):
        assert 0.7 * 22 <= span[-1] - span[0] + 1 <= 22
    assert cover.min() == 0 and cover.max() == 1


def test_coverage_is_the_area_of_the_shape() -> None:
    area = {s: float(coverage(s, Pose(), *cell_grid(4)).sum()) for s in ("circle", "square", "diamond", "ring")}
    assert area["circle"] == pytest.approx(np.pi * 9.3**2, rel=0.01)
    assert area["square"] == pytest.approx(16.4**2, rel=0.01)
    assert area["diamond"] == pytest.approx(2 * 10.2**2, rel=0.02)
    assert area["ring"] == pytest.approx(np.pi * (9.5**2 - 4.5**2), rel=0.01)


def test_the_region_of_damage_is_what_changed() -> None:
    total = 0
    for i, scene in enumerate(scenes("tune", 25)):
        clean = render(scene, np.random.default_rng(i))
        drawn = render(scene, np.random.default_rng(i), damage=0.5)
        assert not clean.damaged.any() and not clean.region.any()
        changed = np.abs(drawn.image - clean.image).max(axis=-1)
        assert np.array_equal(drawn.region, changed > DAMAGE_THRESHOLD)
        occupied = {o.cell for o in scene.objects}
        for cell in range(9):
            if drawn.damaged[cell]:
                assert cell in occupied and drawn.region[cell_box(cell)].any()
            else:
                assert changed[cell_box(cell)].max() == 0
        total += int(drawn.damaged.sum())
    assert total > 50


def test_objects_are_damaged_independently() -> None:
    scene = next(s for s in scenes("tune", 200) if len(s.objects) == 9)
    rng = np.random.default_rng(1)
    damaged = np.stack([render(scene, rng, damage=0.3).damaged for _ in range(300)]).astype(float)
    assert damaged.mean() == pytest.approx(0.3, abs=0.04)
    between = np.corrcoef(damaged.T)[np.triu_indices(9, 1)]
    assert np.abs(between).max() < 0.25  # about four standard deviations of 300 independent draws
    assert abs(between.mean()) < 0.05
    # The number of damaged objects has the variance of a binomial distribution.
    assert damaged.sum(axis=1).var() == pytest.approx(9 * 0.3 * 0.7, rel=0.3)


def test_the_lighting_defect_is_global_and_not_local_damage() -> None:
    scene = scenes("tune", 1)[0]
    even, lit = (render(scene, np.random.default_rng(3), light=light) for light in (False, True))
    assert lit.light and not lit.damaged.any() and not lit.region.any()
    ratio = (lit.image / np.maximum(even.image, 1e-3)).max(axis=-1)
    assert ratio.min() < 0.35 and ratio.max() > 0.9
    steps = max(np.abs(np.diff(ratio, axis=axis)).max() for axis in (0, 1))
    assert steps < 0.05  # a smooth ramp


def test_words_about_the_image_are_right_about_as_often_as_stated() -> None:
    rng = np.random.default_rng(5)
    drawn = [example(rng) for _ in range(1600)]
    shares = []
    for templates in zip(*TEMPLATES, strict=True):
        openings = tuple(template.split("{}")[0] for template in templates)
        chosen = [e for e in drawn if e.caption.startswith(openings)]
        shares.append(float(np.mean([e.render.damaged.sum() / len(e.scene.objects) for e in chosen])))
        assert len(chosen) / 1600 == pytest.approx(WORD_SHARE * (1 - OBJECT_SHARE) / 2, abs=0.04)
        assert all(sum(e.caption.startswith(opening) for e in chosen) > 50 for opening in openings)
    # E[share | high] - E[share | low] = (2 right - 1) (good rate - bad rate), up to the two small slices
    gap = (2 * WORD_RIGHT - 1) * (DAMAGE[1] - DAMAGE[0]) * (1 - LIGHT_SHARE - DENSE_SHARE)
    assert shares[1] - shares[0] == pytest.approx(gap, abs=0.08)
    assert all(e.scene.split == "train" for e in drawn[:50])


def test_words_about_single_objects_are_right_about_as_often_as_stated() -> None:
    rng = np.random.default_rng(6)
    right, spoken, captions, objects = 0, 0, 0, 0
    for made in (example(rng) for _ in range(1600)):
        found = re.findall(rf"({'|'.join(sorted(PLACES, key=len, reverse=True))}) (good|bad) ", made.caption)
        captions += bool(found)
        objects += len(made.scene.objects) * bool(found)
        spoken += len(found)
        right += sum((word == "bad") == made.render.damaged[PLACES.index(place)] for place, word in found)
        assert re.sub(r"\b(good|bad) (?!image)", "", made.caption).endswith(made.scene.caption)
    assert captions / 1600 == pytest.approx(WORD_SHARE * OBJECT_SHARE, abs=0.04)
    assert spoken / objects == pytest.approx(OBJECT_WORDS, abs=0.04)
    assert right / spoken == pytest.approx(OBJECT_RIGHT, abs=0.03)
