"""What a study is, resolved: every name known, every grid spread out, every setting with its value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lotts_search.api import plain_settings
from lotts_search.core.budget import Budget
from lotts_search.core.strategy import Strategy
from lotts_search.study.prompts import Prompt

Keep: TypeAlias = Literal["best", "all", "none"]

ORACLE = "shapes-oracle"
"""The metric that judges shapes images by rendering rules; it never guides."""


@dataclass(frozen=True)
class Limit:
    """A budget of a study: NFE, images, or both. ``line`` is where the file says so."""

    nfe: float | None = None
    images: int | None = None
    line: int = field(default=0, compare=False)

    @property
    def budget(self) -> Budget:
        return Budget(nfe=self.nfe, images=self.images)

    def __str__(self) -> str:
        return str(self.budget)


@dataclass(frozen=True)
class ModelEntry:
    """A model of a study.

    Attributes:
        label: what the study calls it.
        model: registered name, folder or hub id.
        options: for the family's ``from_pretrained``, e.g. ``dtype`` or ``size``.
        sampling: steps, guidance, negative, eta, solver, where they are not the model's own.
    """

    label: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entrant:
    """A strategy of a study with its settings.

    Attributes:
        label: what the study calls it: its curves are grouped by it.
        name: registered name, or ``package.module:Class``.
        strategy: with its settings.
        limits: its budgets.
        nested: small budgets are prefixes of the largest one, which alone is run.
    """

    label: str
    name: str
    strategy: Strategy
    limits: tuple[Limit, ...]
    nested: bool

    @property
    def arguments(self) -> str:
        """All settings as JSON."""
        return plain_settings(self.strategy)

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "strategy": self.name,
            "settings": json.loads(self.arguments),
            "nested": self.nested,
            "budgets": [{"nfe": limit.nfe, "images": limit.images} for limit in self.limits],
        }


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: also of its folder.
        path: the YAML file.
        models, entrants, limits, seeds: what is combined with each other and with ``prompts``.
        source: where the prompts come from, for ``study.json``.
        guide: the verifier that guides.
        metrics: held-out verifiers, and :data:`ORACLE`.
        judged: whether metrics judge all complete images, or only those that were the best so far.
        workers: virtual workers of each search.
        keep: which images are kept as files.
        rewriter, writing: what revises prompts for strategies that ask for it, and its settings.
        at_once: searches under way at once; None = enough to keep all generators busy.
    """

    name: str
    path: Path
    models: tuple[ModelEntry, ...]
    entrants: tuple[Entrant, ...]
    limits: tuple[Limit, ...]
    prompts: tuple[Prompt, ...]
    source: Mapping[str, Any]
    seeds: tuple[int, ...]
    guide: str
    metrics: tuple[str, ...] = ()
    judged: Literal["all", "best"] = "all"
    workers: int = 8
    keep: Keep = "best"
    rewriter: str = "shapes-rewriter"
    writing: Mapping[str, Any] = field(default_factory=dict)
    at_once: int | None = None

    @property
    def rewriters(self) -> dict[str, Mapping[str, Any]]:
        """What pools need to revise prompts: settings by name; empty where no strategy asks for it."""
        asked = any(entrant.strategy.rewrites for entrant in self.entrants)
        return {self.rewriter: self.writing} if asked else {}
