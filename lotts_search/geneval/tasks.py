"""The tasks: what an image must show, the prompt that says so, and back from the prompt to the task."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from lotts_search.errors import BadInput

CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra",
    "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
    "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of COCO; mouse, remote and keyboard have the longer names that GenEval gives them."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The kinds of tasks, by the names in GenEval's metadata."""
PER_TAG = 100
"""Tasks of a kind in the prompt set, except ``single_object``, which has one for each class."""
MOST_COUNTED = 4
"""The largest number that is drawn; prompts may name numbers up to ten."""

_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PAIRS = ("skis", "scissors")
_UNCOUNTED = (*_PAIRS, "broccoli")
_IRREGULAR = {"person": "people", "sheep": "sheep", "knife": "knives", "computer mouse": "computer mice"}


@dataclass(frozen=True)
class Item:
    """Objects that an image must show.

    Attributes:
        name: one of :data:`CLASSES`.
        count: how many, 1 or more.
        colour: one of :data:`COLOURS`; None = any.
    """

    name: str
    count: int = 1
    colour: str | None = None


@dataclass(frozen=True)
class Task:
    """What an image must show.

    Attributes:
        items: one or two.
        relation: one of :data:`RELATIONS`: where the first item is, seen from the second; None = anywhere.
    """

    items: tuple[Item, ...]
    relation: str | None = None

    @classmethod
    def of(cls, prompt: str) -> Task:
        """Return the task of a prompt; GenEval's own prompts are understood, too.

        Raises:
            BadInput: the prompt is not of one of the forms.
        """
        text = prompt.strip()
        if found := _COUNTED.fullmatch(text):
            return cls((Item(_SINGULAR[found["plural"]], _NUMBERS.index(found["number"]) + 2),))
        if (found := _PLACED.fullmatch(text)) is None:
            raise BadInput(
                f"{prompt!r} is no prompt of GenEval's tasks; they are like 'a photo of two dogs', 'a photo of a red car "
                "and a green apple' or 'a photo of a cat left of a bench', with COCO's classes"
            )
        items = [Item(found[f"name{i}"], 1, found[f"colour{i}"]) for i in (1, 2) if found[f"name{i}"]]
        return cls(tuple(items), found["link"] if found["link"] in RELATIONS else None)

    @property
    def tag(self) -> str:
        """One of :data:`TAGS`."""
        coloured = any(item.colour for item in self.items)
        if self.relation:
            return "position"
        if len(self.items) == 2:
            return "color_attr" if coloured else "two_object"
        return "counting" if self.items[0].count > 1 else "colors" if coloured else "single_object"

    @property
    def prompt(self) -> str:
        """The prompt, which :meth:`of` reads."""
        return "a photo of " + f" {self.relation or 'and'} ".join(map(_in_words, self.items))

    @property
    def metadata(self) -> dict[str, Any]:
        """The task in the form of GenEval's ``evaluation_metadata.jsonl``."""
        include: list[dict[str, Any]] = [
            {"class": item.name, "count": item.count, **({"color": item.colour} if item.colour else {})}
            for item in self.items
        ]
        if self.relation:  # the item that is placed follows the one that it refers to
            include = [include[1], {**include[0], "position": [self.relation, 0]}]
        found: dict[str, Any] = {"tag": self.tag, "include": include}
        if self.tag == "counting":
            found["exclude"] = [{"class": item.name, "count": item.count + 1} for item in self.items]
        return {**found, "prompt": self.prompt}


def geneval_tasks(seed: int = 0, per_tag: int = PER_TAG) -> list[Task]:
    """Draw tasks: one for each class and ``per_tag`` of each other kind, all different, the kinds in turns.

    No person has a colour, and nothing is counted that has no number: skis, scissors, broccoli.

    Raises:
        BadInput: more tasks of a kind than there are of each.
    """
    most = len(_COUNTABLE) * (MOST_COUNTED - 1)
    if not 0 <= per_tag <= most:
        raise BadInput(f"GenEval's tasks are 0..{most} of a kind, not {per_tag}")
    rng = np.random.default_rng(seed)
    singles = [Task((Item(str(name)),)) for name in rng.permutation(CLASSES)]
    makers: list[Callable[[np.random.Generator], Task]] = [_two, _counting, _colour, _position, _colours]
    kinds = [singles, *(_distinct(make, per_tag, rng) for make in makers)]
    return [task for turn in zip_longest(*kinds) for task in turn if task is not None]


def _distinct(make: Callable[[np.random.Generator], Task], count: int, rng: np.random.Generator) -> list[Task]:
    found: dict[Task, None] = {}
    while len(found) < count:
        found[make(rng)] = None
    return list(found)


def _some(values: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    return [values[i] for i in rng.choice(len(values), count, replace=False)]


def _two(rng: np.random.Generator) -> Task:
    return Task(tuple(Item(name) for name in _some(CLASSES, 2, rng)))


def _counting(rng: np.random.Generator) -> Task:
    return Task((Item(_some(_COUNTABLE, 1, rng)[0], int(rng.integers(2, MOST_COUNTED + 1))),))


def _colour(rng: np.random.Generator) -> Task:
    return Task((Item(_some(_COLOURED, 1, rng)[0], 1, _some(COLOURS, 1, rng)[0]),))


def _position(rng: np.random.Generator) -> Task:
    return Task(_two(rng).items, _some(RELATIONS, 1, rng)[0])


def _colours(rng: np.random.Generator) -> Task:
    names, colours = _some(_COLOURED, 2, rng), _some(COLOURS, 2, rng)
    return Task(tuple(Item(name, 1, colour) for name, colour in zip(names, colours, strict=True)))


def _in_words(item: Item) -> str:
    if item.count > 1:
        return f"{_NUMBERS[item.count - 2]} {_plural(item.name)}"
    words = " ".join(filter(None, (item.colour, item.name)))
    article = "a pair of" if item.name in _PAIRS else "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}"


def _plural(name: str) -> str:
    return _IRREGULAR.get(name) or name + ("es" if name.endswith(("s", "ch", "sh")) else "s")


_COUNTABLE = tuple(name for name in CLASSES if name not in _UNCOUNTED)
_COLOURED = tuple(name for name in CLASSES if name != "person")
# GenEval forms all plurals by adding s or es.
_SINGULAR = {form: name for name in CLASSES for form in (_plural(name), f"{name}s", f"{name}es")}


def _one_of(words: tuple[str, ...] | dict[str, str]) -> str:
    return "|".join(map(re.escape, words))


def _object(i: int) -> str:
    return rf"(?:an?|a pair of) (?:(?P<colour{i}>{_one_of(COLOURS)}) )?(?P<name{i}>{_one_of(CLASSES)})"


_COUNTED = re.compile(rf"a photo of (?P<number>{_one_of(_NUMBERS)}) (?P<plural>{_one_of(_SINGULAR)})")
_PLACED = re.compile(rf"a photo of {_object(1)}(?: (?P<link>and|{_one_of(RELATIONS)}) {_object(2)})?")
