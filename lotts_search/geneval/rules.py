"""GenEval's rules: from the objects that a detector found to right or wrong. Plain arithmetic, without any network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lotts_search.geneval.tasks import Item, Task

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels; y grows downwards."""
MOST = 16
"""Objects of a class that are considered."""
SLACK = 0.1
"""Share of the objects' sizes that an offset must exceed to count."""


@dataclass(frozen=True)
class Found:
    """An object that a detector found.

    Attributes:
        name: one of :data:`~lotts_search.geneval.tasks.CLASSES`.
        score: the detector's confidence, 0..1.
        box: where it is.
    """

    name: str
    score: float
    box: Box


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows what it must, and what is wrong with it."""

    right: bool
    reason: str = ""


def kept(found: Iterable[Found], threshold: float, overlap: float = 1.0) -> dict[str, list[Found]]:
    """Return the objects by class, the most confident first.

    Args:
        threshold: objects count above this confidence.
        overlap: of two objects of a class with at least this intersection over union only the more confident one counts;
            1 = both.
    """
    classes: dict[str, list[Found]] = {}
    for one in sorted(found, key=lambda one: -one.score):
        if one.score > threshold:
            classes.setdefault(one.name, []).append(one)
    for name, some in classes.items():
        apart: list[Found] = []
        for one in some[:MOST]:
            if overlap >= 1 or all(iou(one.box, other.box) < overlap for other in apart):
                apart.append(one)
        classes[name] = apart
    return classes


def iou(a: Box, b: Box) -> float:
    """Return the intersection of two boxes over their union, 0..1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - common
    return common / union if union > 0 else 0.0


def relations(a: Box, b: Box) -> set[str]:
    """Return where ``a`` is, seen from ``b``: none, one or two of :data:`~lotts_search.geneval.tasks.RELATIONS`.

    The offset of the centres is reduced, in each direction, by a tenth of the sum of the sizes. What is left counts where it
    is more than half of the length of the whole offset.
    """
    (a0, a1), (b0, b1) = (np.array(box).reshape(2, 2) for box in (a, b))
    offset = (a0 + a1 - b0 - b1) / 2
    left = np.sign(offset) * np.maximum(np.abs(offset) - SLACK * (a1 - a0 + b1 - b0), 0)
    if np.abs(left).max() < 1e-3:
        return set()
    x, y = left / np.linalg.norm(offset)
    said = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, holds in said.items() if holds}


def judge(task: Task, found: Mapping[str, Sequence[Found]], colour_of: Callable[[Found], str]) -> Verdict:
    """Return whether the objects are those of a task.

    Only the most confident objects of a class are looked at, as many as the task has. More objects than that are wrong in
    counting alone.

    Args:
        found: objects by class, the most confident first.
        colour_of: names the colour of an object; called where a colour matters.
    """
    reasons = [reason for item in task.items if (reason := _wrong(item, found.get(item.name, ()), colour_of))]
    if task.tag == "counting":
        reasons += [
            f"{item.name}: {len(found[item.name])} found, not {item.count}"
            for item in task.items
            if len(found.get(item.name, ())) > item.count
        ]
    if task.relation and not reasons:
        first, second = (found[item.name][0] for item in task.items)
        if task.relation not in (seen := relations(first.box, second.box)):
            where = " and ".join(sorted(seen)) or "neither beside, above nor below"
            reasons.append(f"{first.name} is {where} {second.name}, not {task.relation}")
    return Verdict(not reasons, "; ".join(reasons))


def _wrong(item: Item, some: Sequence[Found], colour_of: Callable[[Found], str]) -> str:
    """Return what is wrong with the objects of an item, "" for nothing."""
    if len(some) < item.count:
        return f"{item.name}: {len(some)} found, not {item.count}"
    if item.colour is None:
        return ""
    seen = [colour_of(one) for one in some[: item.count]]
    return "" if all(colour == item.colour for colour in seen) else f"{item.name}: {', '.join(seen)}, not {item.colour}"
