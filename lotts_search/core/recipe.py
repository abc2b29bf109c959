"""Recipes: the commands that repeat searches and other runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


def repeating(command: str, arguments: Iterable[object], options: Iterable[str] = ()) -> str:
    """Return the command line with these arguments and options.

    Args:
        arguments: texts and files. One that begins with a dash would be read as an option, so all come last, after ``--``.
        options: words, as of :func:`option`.
    """
    texts = [str(argument) for argument in arguments]
    dashed = any(text.startswith("-") for text in texts)
    first, last = ([], ["--", *texts]) if dashed else (texts, [])
    return shlex.join(["lotts-search", command, *first, *options, *last])


def option(name: str, value: object) -> list[str]:
    """Return the words of an option with its value, which may begin with a dash."""
    text = str(value)
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


@dataclass
class Recipe:
    """The options of ``lotts-search generate`` or ``refine``; they are stored with an image.

    Attributes:
        command: ``generate`` or ``refine``.
        image, mask: files of the initial image and of its mask.
        strategy: None = the one for searches that name none, until it is chosen.
        settings: settings of the strategy.
        verifier: its name and settings; None = the one that the model names.
        rewriter: name of the rewriter; None = the one that the model names, for strategies that use a rewriter.
        writing: settings of the rewriter.
        batch: rows of each network call, which the last bits of an image depend on; None = the standard.
        load: options of the model, from :func:`lotts_search.cli.options.loading`.
        as_: the published model at whose prices FLOPs are counted; None = the model's own.
    """

    command: str
    prompt: str
    model: str
    strategy: str | None
    verifier: str | None
    seed: int
    nfe: float | None = None
    images: int | None = None
    seconds: float | None = None
    target: float | None = None
    steps: int | None = None
    guidance: float | None = None
    negative: str = ""
    image: Path | None = None
    mask: Path | None = None
    settings: dict[str, object] = field(default_factory=dict)
    solver: str | None = None
    eta: float | None = None
    load: dict[str, Any] = field(default_factory=dict)
    rewriter: str | None = None
    writing: dict[str, object] = field(default_factory=dict)
    flops: float | None = None
    as_: str | None = None
    batch: str | None = None

    def line(self) -> str:
        """Return the command that repeats the search."""
        options: list[str] = [] if self.image is None else option("--prompt", self.prompt)
        for name in ("mask", "model", "strategy", "verifier", "nfe", "images", "flops", "as_", "seconds", "target", "seed", "steps", "guidance", "solver", "eta", "rewriter", "batch"):  # fmt: skip
            value = getattr(self, name)
            if value is not None:
                options += option(f"--{name.rstrip('_')}", value)
        if self.negative:
            options += option("--negative", self.negative)
        for name, value in self.settings.items():
            options += option("--set", f"{name}={_text(value)}")
        for name, value in self.writing.items():
            options += option("--set-rewriter", f"{name}={_text(value)}")
        argument = self.prompt if self.image is None else self.image
        return repeating(self.command, [argument], options + loading_words(self.load))

    def recipe(self) -> dict[str, object]:
        """Return the fields that are set, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {name: value for name, value in values.items() if value not in (None, "", {})}
        return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}


def _text(value: object) -> str:
    """Return a setting as it is typed: mappings as JSON, lists as their items with commas."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    return ",".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def loading_words(load: Mapping[str, object]) -> list[str]:
    """Return the command-line words that :func:`loading` turns into ``load``."""
    words: list[str] = []
    for name, value in load.items():
        named = f"--{name.replace('_', '-')}"
        if name == "size" and isinstance(value, Sequence):
            value = f"{value[1]}x{value[0]}"
        if value is True:
            words.append(named)
        else:
            for one in value if isinstance(value, list) else [value]:
                words += option(named, one)
    return words
