"""A study's results by name: the setups that were compared, their curves and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lotts_search.curves.intervals import Interval
from lotts_search.curves.panel import Panel, best_of_n, best_so_far, common, mean_interval, searched, spent
from lotts_search.curves.saturation import Saturation, fit
from lotts_search.curves.speedup import SpeedUp, speed_up
from lotts_search.curves.trials import Setup, Trials, from_table, join, load_table
from lotts_search.curves.wins import WinRate, win_rate
from lotts_search.errors import BadInput, unknown

if TYPE_CHECKING:
    import pyarrow as pa

POOLED = frozenset({"best-of-n"})
"""Strategies whose images are independent samples of one prompt each: one pool gives the curve for every N."""


class Results:
    """The searches of a study. ::

        results = load("runs/NAME")
        ours, base = results.find("lotts", images=9), results.find("best-of-n")
        print(results.speed_up(base, ours, of="oracle", over="images"))

    Attributes:
        trials: the table as arrays.
        about: what ``study.json`` says, {} without one.
    """

    def __init__(self, trials: Trials, about: Mapping[str, Any] | None = None) -> None:
        self.trials, self.about = trials, about or {}

    @property
    def setups(self) -> list[Setup]:
        """What was compared: the setups of the table, and the smaller budgets that their searches hold."""
        return [*self.trials.setups, *self.trials.smaller]

    @property
    def metrics(self) -> list[str]:
        """Held-out metrics; the first one that the study names is the first."""
        return self.trials.metrics

    @property
    def main(self) -> str:
        """The value that reports judge by: the study's first metric, the guide's score without one."""
        asked = [m for m in self.about.get("metrics", ()) if m in self.metrics]
        return next(iter([*asked, *self.metrics]), "score")

    def find(
        self, label: str, *, model: str | None = None, nfe: float | None = None, images: int | None = None
    ) -> Setup:
        """The one setup of that label, model and budget; what is not given may be anything, if only one setup has it.

        Raises:
            BadInput: none or several; the message names those that there are.
        """
        labelled = self.find_label(label)
        fitting = [
            a
            for a in labelled
            if model in (None, a.model) and nfe in (None, a.nfe) and images in (None, a.images)
        ]  # fmt: skip
        if len(fitting) > 1:  # the setup of the largest budget holds all the others
            whole = [a for a in fitting if a in self.trials.setups]
            fitting = whole if len(whole) == 1 and label in self.trials.nested else fitting
        if len(fitting) == 1:
            return fitting[0]
        known = ", ".join(f"{a.model} with {a.budget}" for a in labelled)
        raise BadInput(f"{'no' if not fitting else 'more than one'} {label} fits; there is {known}")

    def find_label(self, label: str) -> list[Setup]:
        """All setups of a label.

        Raises:
            BadInput: there are none.
        """
        found = [a for a in self.setups if a.label == label]
        if not found:
            raise unknown("strategy", label, sorted({a.label for a in self.setups}))
        return found

    def strategy(self, setup: Setup) -> str:
        """Registered name of a setup's strategy."""
        whole = [i for i, a in enumerate(self.trials.setups) if (a.model, a.label) == (setup.model, setup.label)]
        return self.trials.strategies[whole[0]]

    def pooled(self, setup: Setup) -> bool:
        """Whether :meth:`panel` can use the order-statistics estimator."""
        return self.strategy(setup) in POOLED

    def panel(self, setup: Setup, of: str | None = None, over: str = "nfe") -> Panel:
        """Quality by prompt and cost: from the whole pool for Best-of-N, best-so-far for any other strategy."""
        return (best_of_n if self.pooled(setup) else best_so_far)(self.trials, setup, of or self.main, over)

    def budgets(self, setups: Sequence[Setup], of: str | None = None, over: str = "nfe") -> Panel:
        """Quality by prompt and cost with one point for each budget: what the searches of each setup handed out, at
        what they cost in the mean. For strategies that size themselves by their budget.

        Raises:
            BadInput: no prompt in common.
        """
        panels = sorted((self.final(setup, of, over) for setup in setups), key=lambda panel: panel.spent.mean())
        prompts = reduce(np.intersect1d, (panel.prompts for panel in panels))
        if not prompts.size:
            raise BadInput("the budgets have no prompt in common")
        same = [panel.among(prompts) for panel in panels]
        x, y = np.array([p.spent.mean() for p in same]), np.stack([p.final for p in same], axis=1)
        return Panel(x, y, prompts, same[-1].spent, over, same[0].of)

    def final(self, setup: Setup, of: str | None = None, over: str = "nfe", *, refined: bool = False) -> Panel:
        """What the searches of a setup handed out; with ``refined``, the best of the refined alone.

        For Best-of-N it is the expected one over all subsets of the pool: the same mean with less noise.
        """
        panel = best_so_far(self.trials, setup, of or self.main, over, refined=refined)
        if refined or not self.pooled(setup):
            return panel
        count = int(spent(self.trials, setup, "images").min())
        pool = best_of_n(self.trials, searched(self.trials, setup), panel.of, over, most=count)
        return replace(panel, x=pool.x, y=pool.among(panel.prompts).y)

    def value(self, setup: Setup, of: str | None = None, *, refined: bool = False) -> Interval:
        """Mean quality of what a setup handed out."""
        return mean_interval(self.final(setup, of, refined=refined).final)

    def spent(self, setup: Setup, over: str) -> float:
        """Mean cost of a search of a setup."""
        return float(spent(self.trials, setup, over).mean())

    def difference(self, ours: Setup, theirs: Setup, of: str | None = None, *, refined: bool = False) -> Interval:
        """Difference of what the two handed out, paired by prompt."""
        a, b = common(self.final(ours, of, refined=refined), self.final(theirs, of, refined=refined))
        return mean_interval(a.final - b.final)

    def win_rate(self, ours: Setup, theirs: Setup, of: str | None = None) -> WinRate:
        """How often ``ours`` hands out the better image of a prompt: of the images that were handed out."""
        a, b = common(*(best_so_far(self.trials, setup, of or self.main, "nfe") for setup in (ours, theirs)))
        return win_rate(a.final, b.final)

    def speed_up(
        self, slow: Setup, fast: Setup, of: str | None = None, over: str = "nfe", quality: float | None = None
    ) -> SpeedUp:
        """How many times less ``fast`` costs at equal quality, see :func:`~lotts_search.curves.speedup.speed_up`."""
        return speed_up(self.panel(slow, of, over), self.panel(fast, of, over), quality)

    def saturation(self, setup: Setup, of: str | None = None, over: str = "nfe") -> Saturation:
        """The fit q∞ − c·n^−γ to a setup's curve."""
        return fit(self.panel(setup, of, over))


def load(*runs: Path | str) -> Results:
    """The results of a study: its run folder, or a ``trials.parquet`` alone. Several are read as one study, whose
    strategies are compared with each other: a search that two of them have under the same label counts once.

    Raises:
        BadInput: there is no trial table, or it is empty.
    """
    return _load(runs, whole=False)[0]


def load_whole(*runs: Path | str) -> tuple[Results, pa.Table]:
    """The same with the trial table, all its columns."""
    return _load(runs, whole=True)


def _load(runs: Sequence[Path | str], whole: bool) -> tuple[Results, pa.Table]:
    read = [load_table(run, whole=whole) for run in runs]
    about, table = _merged([about for _, about in read]), join([table for table, _ in read])
    return Results(from_table(table, about), about), table


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first ``study.json`` with the metrics, models, strategies, budgets and searches of all."""
    merged = dict(parts[0]) if parts else {}
    for name in ("metrics", "models", "strategies", "budgets", "searches"):
        items = [item for part in parts for item in part.get(name, ())]
        merged[name] = [item for i, item in enumerate(items) if item not in items[:i]] if name != "searches" else items
    return merged
