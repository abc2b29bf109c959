"""Prompt sets: the shapes world's own, well-known ones from the hub, and local files.

A prompt's id depends only on its text (or on the column ``id`` of its file). So does its place in a sample: with the same
seed, the first 100 prompts are the first half of the first 200, whatever the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lotts_search.errors import BadInput, Failure, notice, unknown
from lotts_search.geneval.tasks import geneval_tasks
from lotts_search.study.prompt_files import Row, prompt_column, prompt_text, read_rows, row_id
from lotts_search.work.requests import Bytes

SCENES = 500
"""Number of scenes of the shapes world that are first searched for certain fields."""
MOST_SCENES = 10_000
"""Most scenes that are drawn; each takes one to three milliseconds."""


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        id: e.g. ``drawbench-1f2e3d4c5b6a``.
        text: the prompt itself.
        fields: other values of its set, e.g. a category.
        image: an image [h, w, 3] to start from, in sets that have one.
    """

    id: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    image: Bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class _Hub:
    """A set on the hub: its repository, split, and prompt column."""

    repository: str
    split: str
    column: str
    summary: str


_HUB = {
    "drawbench": _Hub("sayakpaul/drawbench", "train", "Prompts", "DrawBench: 200 prompts, with `Category`."),
    "pick-a-pic": _Hub(
        "yuvalkirstain/pickapic_v1_no_images", "test_unique", "caption", "Pick-a-Pic: 500 prompts of users."
    ),
    "coco": _Hub("sayakpaul/coco-30-val-2014", "train", "caption", "COCO 2014: captions of the validation set."),
    "parti-prompts": _Hub(
        "nateraw/parti-prompts", "train", "Prompt", "PartiPrompts: 1,632 prompts, with `Category` and `Challenge`."
    ),
}
_SLICES = {"sparse": (0.2, False), "usual": (0.5, False), "dense": (0.95, False), "light": (0.0, True)}
"""Start images of the shapes world: probability that an object is damaged, and whether the lighting is."""
_FILES = (".txt", ".csv", ".jsonl", ".parquet")


def prompt_sets() -> dict[str, str]:
    """Return the named sets, each with a line about it."""
    sets = {
        "shapes-test": "Scenes of the shapes world, of the test split; with `objects` and `background`.",
        "shapes-tune": "The same, of the tuning split.",
    }
    for name, (rate, light) in _SLICES.items():
        what = "a lighting defect" if light else f"each object damaged with probability {rate:g}"
        sets[f"shapes-test/{name}"] = f"The same with an image to start from: {what}."
    sets["geneval"] = "GenEval's tasks, drawn by this project: 580 prompts with `tag`, `include` and `exclude`."
    return sets | {name: hub.summary for name, hub in _HUB.items()}


def load_prompts(
    source: str,
    *,
    count: int | None = None,
    seed: int | None = 0,
    where: Mapping[str, Any] | None = None,
    column: str | None = None,
    split: str | None = None,
) -> list[Prompt]:
    """Return a sample of a prompt set.

    Args:
        source: a name of :func:`prompt_sets`, or a file: ``.txt`` (one per line), ``.csv``, ``.jsonl`` or ``.parquet``.
        count: the greatest number of prompts; None = all (of the shapes sets: 100).
        seed: chooses the sample; None = the first prompts.
        where: required values of fields, e.g. ``{"Category": "Colors"}``.
        column: the column of the prompts; by default ``prompt``, ``caption`` or ``text``.
        split: another split of a set on the hub.

    Raises:
        BadInput: no such set, file or column, or no prompt is left.
        Failure: the set cannot be fetched, or the library for it is missing.
    """
    if count is not None and count < 1:
        raise BadInput(f"the number of prompts must be 1 or more, not {count}")
    if split is not None and source not in _HUB:
        raise BadInput(f"{source} has no splits: leave out split {split!r}")
    if column is not None and source in prompt_sets().keys() - _HUB.keys():
        raise BadInput(f"{source} has no columns: leave out column {column!r}")
    if source.startswith("shapes-"):
        if source not in prompt_sets():
            raise unknown("prompt set", source, prompt_sets())
        return _shapes(source, count or 100, seed, dict(where or {}))
    if source == "geneval":
        prompts = _geneval()
    elif source in _HUB:
        prompts = _from_hub(source, column, split)
    elif Path(source).suffix.lower() in _FILES:
        prompts = _from_file(Path(source), column)
    else:
        sets = [*prompt_sets(), *(f"a file {ending}" for ending in _FILES)]
        raise unknown("prompt set", source, sets)
    found = list(_matching(_distinct(prompts, source), dict(where or {}), source))
    if not found:
        raise BadInput(f"{source} has no prompts" + (f" with {_say(where)}" if where else ""))
    if count is not None and count > len(found):
        notice(f"{source} has {len(found):,} prompts{f' with {_say(where)}' if where else ''} instead of {count:,}")
    return sample(found, count, seed)


def prompt_file(source: str, folder: Path) -> Path | None:
    """Return the file that a study in ``folder`` means by ``source``, beside it or from the current folder; None for a set."""
    if Path(source).suffix.lower() not in _FILES:
        return None
    return next((path for path in (folder / source, Path(source)) if path.is_file()), None)


def texts(prompts: Iterable[str]) -> list[Prompt]:
    """Return prompts from texts; equal texts count once."""
    return list(_distinct((Prompt(_id("prompt", text), text) for text in prompts), "the study"))


def sample(prompts: list[Prompt], count: int | None, seed: int | None) -> list[Prompt]:
    """Return the first ``count`` prompts in the order of ``seed`` (None = the given order)."""
    if seed is not None:
        prompts = sorted(prompts, key=lambda prompt: blake2b(f"{seed} {prompt.id}".encode()).digest())
    return prompts[:count]


def _id(source: str, text: str) -> str:
    return f"{source}-{blake2b(text.encode(), digest_size=6).hexdigest()}"


def _distinct(prompts: Iterable[Prompt], source: str) -> Iterator[Prompt]:
    """Skip empty prompts and repeated texts, and report how many there were."""
    seen: set[str] = set()
    empty = repeated = 0
    for prompt in prompts:
        if not prompt.text:
            empty += 1
        elif prompt.text in seen:
            repeated += 1
        else:
            seen.add(prompt.text)
            yield prompt
    skipped = [f"{count} {what}" for count, what in ((empty, "empty"), (repeated, "repeated")) if count]
    if skipped:
        notice(f"{source}: skipped {' and '.join(skipped)} of {len(seen) + empty + repeated} prompts")


def _matching(prompts: Iterable[Prompt], where: Mapping[str, Any], source: str) -> Iterator[Prompt]:
    for prompt in prompts:
        for name in where:
            if name not in prompt.fields:
                raise BadInput(
                    f"prompts of {source} have no field {name!r}; they have {', '.join(prompt.fields) or 'none'}"
                )
        if all(_equal(prompt.fields[name], wanted) for name, wanted in where.items()):
            yield prompt


def _equal(value: Any, wanted: Any) -> bool:
    """Whether a field has a value of a study file. A CSV file holds texts alone: there ``true`` is True, ``3.0`` is 3. A
    column of a Parquet file has one type: there 3.0 is 3."""
    if wanted is None:
        return value is None or (isinstance(value, str) and not value.strip())
    if isinstance(wanted, bool) or isinstance(value, bool):
        return str(value).strip().lower() == str(wanted).strip().lower()
    if isinstance(wanted, int | float):
        with suppress(InvalidOperation):
            return Decimal(str(value)) == Decimal(str(wanted))
    return str(value) == str(wanted)


def _say(where: Mapping[str, Any] | None) -> str:
    return " and ".join(f"{name} = {value}" for name, value in (where or {}).items())


# The shapes world.


def _shapes(source: str, count: int, seed: int | None, where: Mapping[str, Any]) -> list[Prompt]:
    from lotts_search.shapes.world.scene import Scene, scenes

    name, _, slice_ = source.partition("/")

    def prompt(scene: Scene) -> Prompt:
        fields = {"objects": len(scene.objects), "background": scene.background}
        return Prompt(_id(source, scene.caption), scene.caption, fields)

    if count > MOST_SCENES:
        raise BadInput(f"{source} has at most {MOST_SCENES:,} prompts, not {count:,}")
    drawn = count if not where else SCENES
    while True:
        # Scenes come in a fixed order, so that a larger number begins with the smaller one.
        drawn_scenes = scenes("tune" if name == "shapes-tune" else "test", drawn, seed or 0)
        found = list(_matching(map(prompt, drawn_scenes), where, source))[:count]
        if len(found) == count:
            break
        if not found:
            raise BadInput(f"{source} has no scene with {_say(where)}")
        if drawn == MOST_SCENES:
            notice(f"{source} has {len(found):,} prompts with {_say(where)} instead of {count:,}")
            break
        drawn = min(2 * drawn, MOST_SCENES)
    return [_with_image(prompt, slice_) for prompt in found] if slice_ else found


def _with_image(prompt: Prompt, slice_: str) -> Prompt:
    import numpy as np

    from lotts_search.shapes.world.render import render, to_uint8
    from lotts_search.shapes.world.scene import parse_caption

    rate, light = _SLICES[slice_]
    rng = np.random.default_rng(list(blake2b(prompt.id.encode(), digest_size=8).digest()))
    image = render(parse_caption(prompt.text), rng, damage=rate, light=light)
    return Prompt(prompt.id, prompt.text, {**prompt.fields, "slice": slice_}, to_uint8(image.image))


# GenEval, the hub and files.


def _geneval() -> Iterator[Prompt]:
    for task in geneval_tasks():
        fields = task.metadata
        text = fields.pop("prompt")
        yield Prompt(_id("geneval", text), text, fields)


def _from_hub(name: str, column: str | None, split: str | None) -> Iterator[Prompt]:
    hub = _HUB[name]
    try:
        import datasets
    except ImportError as error:
        raise Failure(f"prompts of {name} need the library datasets: pip install 'lotts-search[prompts]'") from error
    try:
        # Streaming, and text columns only: the images of some sets are not fetched.
        rows = datasets.load_dataset(hub.repository, split=split or hub.split, streaming=True)
        texts_only = [key for key, kind in (rows.features or {}).items() if getattr(kind, "dtype", "") == "string"]
        rows = rows.select_columns(texts_only) if texts_only else rows
        found = list(rows)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Failure(f"prompts of {name} cannot be fetched from {hub.repository} on the hub: {lines[0]}") from error
    return _rows([Row(number, row) for number, row in enumerate(found, 1)], column or hub.column, name)


def _from_file(path: Path, column: str | None) -> Iterator[Prompt]:
    return _rows(read_rows(path), column, path.stem, str(path))


def _rows(rows: list[Row], column: str | None, source: str, file: str | None = None) -> Iterator[Prompt]:
    """Yield prompts from rows; a column ``id`` gives their ids."""
    where = file or source
    key = prompt_column(where, rows, column) if rows else ""
    lines: dict[str, Row] = {}
    for row in rows:
        text, own = prompt_text(where, row, key), row_id(where, row)
        if own is not None and text:
            first = lines.setdefault(own, row)
            if first.values[key] != row.values[key]:
                raise BadInput(f"{where}, line {row.line}: id {own!r} is that of another prompt, in line {first.line}")
        fields = {name: value for name, value in row.values.items() if name not in (key, "id")}
        yield Prompt(_id(source, text) if own is None else f"{source}-{own}", text, fields)
