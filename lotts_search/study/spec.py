"""A study as plain data: every name resolved, every grid expanded, every setting with its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lotts_search.api import plain_settings
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Costs
from lotts_search.core.strategy import Strategy
from lotts_search.errors import BadInput
from lotts_search.study.prompts import Prompt
from lotts_search.work.model import ModelInfo
from lotts_search.work.prices import Prices, published

Keep: TypeAlias = Literal["best", "all", "none"]


@dataclass(frozen=True)
class Limit:
    """A budget of a study: NFE, images, FLOPs or several of them; or ``samples``, the NFE of that many images from pure noise.

    ``line`` is its line in the study file.
    """

    nfe: float | None = None
    images: int | None = None
    samples: float | None = None
    flops: float | None = None
    line: int = field(default=0, compare=False)

    @property
    def budget(self) -> Budget:
        """The same as a search's budget."""
        return Budget(nfe=self.nfe, images=self.images, flops=self.flops)

    def on(self, costs: Costs | None) -> Limit:
        """The same on a model with these costs, with ``samples`` converted to NFE.

        Raises:
            BadInput: the costs are not known, and the limit depends on them.
        """
        if self.samples is None:
            return self
        if costs is None:
            raise BadInput(f"a budget of {self} needs a model whose steps are known before it is loaded: give 'nfe'")
        return Limit(nfe=self.samples * costs.sample.nfe, line=self.line)

    def __str__(self) -> str:
        return f"{self.samples:g} samples" if self.samples is not None else str(self.budget)


@dataclass(frozen=True)
class ModelEntry:
    """A model of a study.

    Attributes:
        label: its name in the study.
        model: registered name, folder or hub id.
        options: for the family's ``from_pretrained``, e.g. ``dtype`` or ``size``.
        sampling: steps, guidance, negative, eta and solver, where they differ from the model's own.
        priced_as: the published model at whose prices FLOPs are counted; None = its own.
        verifier: guides its searches.
    """

    label: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    priced_as: str | None = None
    verifier: str = ""

    def prices(self, info: ModelInfo | None = None) -> Prices:
        """Return the prices of operations; unless it is priced as a published model, they are those of the loaded model, not
        known before it is loaded."""
        if self.priced_as is not None:
            return published(self.priced_as)
        return Prices() if info is None else info.prices


@dataclass(frozen=True)
class StrategyEntry:
    """A strategy of a study with its settings.

    Attributes:
        label: its name in the study; curves are grouped by it.
        name: registered name, or ``package.module:Class``.
        strategy: the strategy with its settings.
        limits: its budgets.
        nested: a search under a small budget is the beginning of one under a larger budget; only the largest is run.
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


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: also the name of its folder.
        path: the YAML file.
        models, strategies, prompts, seeds: every combination of them is searched, under every budget. A model with several
            verifiers is there once for each.
        limits: the budgets of strategies that have none of their own.
        source: the origin of the prompts, for ``study.json``.
        metrics: registered metrics and held-out verifiers; none of them guides a search.
        judged: whether metrics judge all complete images, or only those that were the best so far.
        baselines: labels that reports compare the others with.
        seconds: time limit of one run, loading excluded; None = no limit.
        workers: virtual workers of each search.
        keep: which images are kept as files.
        rewriter, writing: the prompt rewriter of strategies that use one, and its settings; "" where none does.
        at_once: searches in flight at a time; None = enough to keep all generators busy.
        place: what actors on Ray take, as texts of ``--place``, and where each stands in the file.
        renamed: notes on old spellings in the file.
    """

    name: str
    path: Path
    models: tuple[ModelEntry, ...]
    strategies: tuple[StrategyEntry, ...]
    limits: tuple[Limit, ...]
    prompts: tuple[Prompt, ...]
    source: Mapping[str, Any]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...] = ()
    judged: Literal["all", "best"] = "all"
    baselines: tuple[str, ...] = ()
    seconds: float | None = None
    workers: int = 8
    keep: Keep = "best"
    rewriter: str = ""
    writing: Mapping[str, Any] = field(default_factory=dict)
    at_once: int | None = None
    place: Mapping[str, str] = field(default_factory=dict)
    renamed: tuple[str, ...] = ()

    @property
    def verifiers(self) -> list[str]:
        """The verifiers that guide searches."""
        return list(dict.fromkeys(model.verifier for model in self.models))

    @property
    def rewriters(self) -> dict[str, Mapping[str, Any]]:
        """Settings of the rewriters that pools must offer, by name; empty where no strategy rewrites prompts."""
        return {self.rewriter: self.writing} if any(s.strategy.rewrites for s in self.strategies) else {}
