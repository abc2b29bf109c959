"""The oracle against the truth of renders and against hand-made images."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from lotts_search.errors import BadInput
from lotts_search.shapes.measure.oracle_check import check
from lotts_search.shapes.world.oracle import DAMAGED_SHARE, Verdict, judge, judge_many
from lotts_search.shapes.world.render import cell_box, render, to_uint8
from lotts_search.shapes.world.scene import BACKGROUNDS, COLOURS, SHAPES, Object, Scene

Image = npt.NDArray[np.uint8]
SCENE = Scene(tuple(Object(c, list(COLOURS)[c % 8], SHAPES[c % 7]) for c in range(8)), "gray")
"""Objects in all cells but the last."""


def drawn(scene: Scene = SCENE, seed: int = 0) -> Image:
    return to_uint8(render(scene, np.random.default_rng(seed)).image)


def soften(images: Image) -> Image:
    """Imitate an autoencoder: soft edges and a little grain."""
    soft = ndimage.gaussian_filter(images.astype(np.float32), (0, 0.7, 0.7, 0))
    grain = np.random.default_rng(0).normal(0, 4, soft.shape)
    return np.asarray((soft + grain).clip(0, 255), dtype=np.uint8)


@cache
def figures() -> dict[str, float]:
    return check(50, trip=soften)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("undamaged renders, cells judged right and undamaged", 0.98),
        ("undamaged renders judged perfect", 0.98),
        ("wrong captions, only the wrong object judged wrong", 0.98),
        ("damaged renders, damaged objects found", 0.95),
        ("damaged renders, correlation of damaged area per object", 0.9),
        ("damaged renders, correlation of damaged area per image", 0.9),
        ("round trip, verdicts unchanged", 0.97),
        ("round trip, correlation of damaged area per object", 0.9),
        ("round trip, correlation of damaged area per image", 0.9),
    ],
)
def test_verdicts_agree_with_the_truth_of_held_out_renders(name: str, least: float) -> None:
    assert figures()[name] >= least


def test_intact_objects_are_not_judged_damaged() -> None:
    assert figures()["damaged renders, undamaged objects taken for damaged or wrong"] <= 0.02
    assert figures()["round trip, undamaged objects taken for damaged or wrong"] <= 0.02


def test_a_perfect_image() -> None:
    verdict = judge(drawn(), SCENE)
    assert verdict.perfect and verdict.quality > 0.99 and not verdict.flawed.any()
    assert verdict.found == (*((o.colour, o.shape) for o in SCENE.objects), None)
    assert verdict.background == "gray" and verdict.background_right
    assert verdict.expected.tolist() == [True] * 8 + [False]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_distinguished_from_every_other(shape: str) -> None:
    image = drawn(Scene(tuple(Object(c, "blue", shape) for c in range(9)), "white"), seed=4)
    for asked in SHAPES:
        verdict = judge(image, Scene(tuple(Object(c, "blue", asked) for c in range(9)), "white"))
        assert (verdict.shape_right == (asked == shape)).all() and verdict.colour_right.all()
        assert verdict.quality > 0.99 if asked == shape else verdict.quality == 0


def test_a_wrong_colour_is_not_a_wrong_shape() -> None:
    asked = replace(SCENE, objects=(replace(SCENE.objects[0], colour="green"), *SCENE.objects[1:]))
    verdict = judge(drawn(), asked)
    assert not verdict.colour_right[0] and verdict.shape_right[0] and verdict.present[0]
    assert verdict.flawed.tolist() == [True] + [False] * 8
    assert verdict.quality == pytest.approx(8 / 9, abs=0.01) and not verdict.perfect


def test_missing_and_spurious_objects() -> None:
    missing = judge(drawn(replace(SCENE, objects=SCENE.objects[1:])), SCENE)
    assert not missing.present[0] and missing.found[0] is None and missing.flawed[0]
    assert missing.quality == pytest.approx(8 / 9, abs=0.01)
    spurious = judge(drawn(replace(SCENE, objects=(*SCENE.objects, Object(8, "red", "star")))), SCENE)
    assert spurious.spurious.tolist() == [False] * 8 + [True] and spurious.found[8] == ("red", "star")
    assert spurious.quality == pytest.approx(8 / 9, abs=0.01) and not spurious.perfect


def test_half_an_object_is_about_half_damaged() -> None:
    scene = Scene((Object(4, "red", "square"),), "black")
    image = drawn(scene)
    image[:, 32:43] = BACKGROUNDS["black"]
    verdict = judge(image, scene)
    assert verdict.right[4] and verdict.damaged[4]
    assert verdict.damage[4] == pytest.approx(0.5, abs=0.1)
    assert verdict.quality == pytest.approx((8 + 0.5) / 9, abs=0.02)
    marked = np.zeros((64, 64), dtype=bool)
    marked[26:38, 34:38] = True  # within the missing part
    assert verdict.region[marked].all() and not verdict.region[26:38, 26:31].any()


def test_a_speck_is_not_damage_but_a_hole_is() -> None:
    scene = Scene((Object(4, "yellow", "circle"),), "brown")
    image = drawn(scene)
    image[32, 32] = COLOURS["blue"]
    assert judge(image, scene).damage[4] == 0
    image[28:36, 28:36] = COLOURS["blue"]
    verdict = judge(image, scene)
    assert verdict.right[4] and verdict.damage[4] > DAMAGED_SHARE
    assert verdict.area[4] == pytest.approx(64, abs=8)


def test_a_blurred_object_is_damaged_and_a_soft_one_is_not() -> None:
    scene = Scene((Object(4, "yellow", "star"),), "white")  # little contrast
    sharp = drawn(scene).astype(np.float32)
    for sigma, expected in [(0.8, False), (2.9, True)]:
        verdict = judge(ndimage.gaussian_filter(sharp, (sigma, sigma, 0)).astype(np.uint8), scene)
        assert verdict.right[4] and verdict.damaged[4] == expected


def test_a_small_drift_of_colour_is_accepted_but_darkness_is_not() -> None:
    image = drawn().astype(np.float32)
    assert judge((image * 0.94).astype(np.uint8), SCENE).perfect
    dark = judge((image * 0.4).astype(np.uint8), SCENE)
    assert not dark.perfect and dark.quality < 0.5


def test_another_background_is_recognized() -> None:
    verdict = judge(drawn(replace(SCENE, background="white")), SCENE)
    assert verdict.background == "white" and not verdict.background_right and not verdict.perfect
    assert verdict.right.all() and not verdict.flawed.any()


def test_noise_and_emptiness_have_no_quality() -> None:
    rng = np.random.default_rng(0)
    scene = Scene(tuple(Object(c, "red", "ring") for c in range(9)), "gray")
    assert judge(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), scene).quality < 0.05
    empty = judge(np.full((64, 64, 3), BACKGROUNDS["gray"], dtype=np.uint8), scene)
    assert empty.quality == 0 and not empty.present.any()


def test_a_verdict_does_not_depend_on_the_other_images() -> None:
    scenes = [SCENE, replace(SCENE, background="black"), replace(SCENE, objects=SCENE.objects[:3])]
    images = np.stack([drawn(s, seed) for seed, s in enumerate(scenes)])
    images[1, 10:20] = 200
    together = judge_many(images, scenes)
    for image, scene, verdict in zip(images, scenes, together, strict=True):
        alone = judge(image, scene)
        assert np.array_equal(alone.region, verdict.region)
        assert _facts(alone) == _facts(verdict)


def _facts(v: Verdict) -> tuple[object, ...]:
    return v.found, v.background, v.right.tolist(), v.area.tolist(), v.perfect


def test_only_the_broken_cell_is_flawed() -> None:
    image = drawn()
    for cell in range(8):
        broken = image.copy()
        broken[cell_box(cell)] = np.random.default_rng(cell).integers(0, 256, broken[cell_box(cell)].shape)
        assert np.flatnonzero(judge(broken, SCENE).flawed).tolist() == [cell]


def test_bad_input_is_refused() -> None:
    with pytest.raises(BadInput, match=r"uint8 images \[N, 64, 64, 3\]"):
        judge_many(np.zeros((1, 32, 32, 3), dtype=np.uint8), [SCENE])
    with pytest.raises(BadInput, match="uint8"):
        judge_many(np.zeros((1, 64, 64, 3), dtype=np.float32), [SCENE])
    with pytest.raises(BadInput, match="1 images for 2 scenes"):
        judge_many(np.zeros((1, 64, 64, 3), dtype=np.uint8), [SCENE, SCENE])
