"""The rules on made-up boxes."""

from __future__ import annotations

import math

import pytest

from lotts_search.geneval.rules import Box, Found, iou, judge, kept, relations
from lotts_search.geneval.tasks import Task


def at(name: str, x: float, y: float, score: float = 0.95, size: float = 10) -> Found:
    return Found(name, score, (x - size / 2, y - size / 2, x + size / 2, y + size / 2))


def verdict(
    prompt: str, *found: Found, colours: dict[Found, str] | None = None, threshold: float = 0.3
) -> tuple[bool, str]:
    def colour_of(one: Found) -> str:
        assert colours is not None, "no colour matters"
        return colours[one]

    said = judge(Task.of(f"a photo of {prompt}"), kept(found, threshold), colour_of)
    return said.right, said.reason


def test_objects_are_there_or_not() -> None:
    cat, dog = at("cat", 0, 0), at("dog", 50, 0)
    assert verdict("a cat", cat) == (True, "")
    assert verdict("a cat", cat, dog, at("cat", 90, 9)) == (True, "")  # more is no fault, except in counting
    assert verdict("a cat", dog) == (False, "cat: 0 found, not 1")
    assert verdict("a cat and a dog", cat, dog) == (True, "")
    assert verdict("a cat and a dog", dog) == (False, "cat: 0 found, not 1")
    assert verdict("a cat and a dog") == (False, "cat: 0 found, not 1; dog: 0 found, not 1")


@pytest.mark.parametrize("wanted", [2, 3, 4])
@pytest.mark.parametrize("shown", range(7))
def test_counting_is_exact(wanted: int, shown: int) -> None:
    words = {2: "two", 3: "three", 4: "four"}
    found = [at("cat", 20 * i, 0) for i in range(shown)] + [at("dog", 0, 90)]
    right, reason = verdict(f"{words[wanted]} cats", *found)
    assert right == (shown == wanted)
    assert reason == ("" if right else f"cat: {shown} found, not {wanted}")


def test_the_threshold_is_exclusive_and_decides_what_counts() -> None:
    found = [at("cat", 0, 0, 0.95), at("cat", 30, 0, 0.91), at("cat", 60, 0, 0.9), at("cat", 90, 0, 0.31)]
    assert [len(kept(found, threshold)["cat"]) for threshold in (0.3, 0.31, 0.9, 0.91)] == [4, 3, 2, 1]
    assert verdict("two cats", *found, threshold=0.9) == (True, "")
    assert verdict("two cats", *found, threshold=0.3) == (False, "cat: 4 found, not 2")
    assert kept(found, 0.99) == {}


def test_objects_are_ordered_limited_and_kept_apart() -> None:
    near, far = at("cat", 1, 0, 0.8), at("cat", 40, 0, 0.7)
    best, other = at("cat", 0, 0, 0.9), at("dog", 0, 0, 0.6)
    found = [far, near, other, best]
    assert kept(found, 0.3) == {"cat": [best, near, far], "dog": [other]}
    same = iou(best.box, near.box)
    assert same == pytest.approx(9 / 11)
    assert kept(found, 0.3, same) == {"cat": [best, far], "dog": [other]}, "other classes may lie there"
    assert kept(found, 0.3, same + 1e-9) == kept(found, 0.3)
    # What was left out leaves out nothing: 0 covers 4, 4 would cover 8.
    row = [at("cat", 4 * i, 0, 0.9 - i / 10) for i in range(3)]
    assert kept(row, 0.3, 0.4)["cat"] == [row[0], row[2]]
    assert len(kept([at("cat", 20 * i, 0, 0.5 + i / 100) for i in range(20)], 0.3)["cat"]) == 16


def test_iou() -> None:
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0 and iou((0, 0, 2, 2), (5, 5, 6, 6)) == 0
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0


@pytest.mark.parametrize("distance", [0.0, 1.9, 4.0, 30.0, 500.0])
def test_relations_follow_the_offset_of_the_centres(distance: float) -> None:
    """By the rule in words, with two boxes of 10: 2 of each offset do not count, and half of the distance is needed."""
    for angle in range(0, 360, 5):
        holds(angle, distance)


def holds(angle: float, distance: float) -> None:
    x, y = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
    expected = set()
    for value, low, high in ((x, "left of", "right of"), (y, "above", "below")):
        if abs(value) - 2 > distance / 2:
            expected.add(high if value > 0 else low)
    a, b = at("a", 100 + x, 100 + y).box, at("b", 100, 100).box
    assert relations(a, b) == expected
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(b, a) == {opposite[one] for one in expected}


def test_large_objects_need_larger_offsets() -> None:
    wide: Box = (0, 0, 100, 10)
    assert relations((100, 0, 110, 10), wide) == {"right of"}  # 55 − 11 of 55
    assert relations((55, 0, 65, 10), wide) == set()  # centres 10 apart, 11 do not count
    assert relations((45, 20, 55, 30), wide) == {"below"}
    assert relations(wide, wide) == set()


def test_positions_are_those_of_the_most_confident_objects() -> None:
    cat, dog = at("cat", 0, 50), at("dog", 60, 50)
    assert verdict("a cat left of a dog", cat, dog) == (True, "")
    assert verdict("a cat right of a dog", cat, dog) == (False, "cat is left of dog, not right of")
    assert verdict("a dog right of a cat", cat, dog) == (True, "")
    assert verdict("a cat above a dog", cat, at("dog", 0, 50)) == (False, "cat is neither beside, above nor below dog, not above")  # fmt: skip
    assert verdict("a cat left of a dog", cat) == (False, "dog: 0 found, not 1")
    less = at("cat", 120, 50, 0.5)
    assert verdict("a cat right of a dog", cat, dog, less)[0] is False
    assert verdict("a cat right of a dog", at("cat", 0, 50, 0.4), dog, less)[0] is True


def test_colours_are_those_of_the_most_confident_objects() -> None:
    first, second, cup = at("car", 0, 0, 0.9), at("car", 50, 0, 0.8), at("cup", 0, 50)
    colours = {first: "red", second: "blue", cup: "green"}
    assert verdict("a red car", second, first, colours=colours) == (True, "")
    assert verdict("a blue car", second, first, colours=colours) == (False, "car: red, not blue")
    assert verdict("a red car and a green cup", first, cup, colours=colours) == (True, "")
    assert verdict("a green car and a red cup", first, cup, colours=colours) == (
        False, "car: red, not green; cup: green, not red"
    )  # fmt: skip
    assert verdict("a red car", cup, colours=colours) == (False, "car: 0 found, not 1")
