"""The results of a study by name: the setups that it compared, their curves and their comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lotts_search.curves.intervals import Interval, share_difference
from lotts_search.curves.overoptimization import Tradeoff, tradeoff
from lotts_search.curves.panel import Panel, best_of_n, best_so_far, common, mean_interval, searched, spent
from lotts_search.curves.saturation import Saturation, fit
from lotts_search.curves.speedup import SpeedUp, speed_up
from lotts_search.curves.trials import Price, Setup, Trials, from_table, join, load_table
from lotts_search.curves.wins import WinRate, win_rate
from lotts_search.errors import BadInput, unknown

if TYPE_CHECKING:
    import pyarrow as pa

POOLED = frozenset({"best-of-n"})
"""Strategies whose images are independent samples for one prompt, so that one pool gives the curve for every N."""


class Results:
    """The searches of a study. ::

        results = load("runs/NAME")
        ours, base = results.find("lotts", images=9), results.find("best-of-n")
        print(results.speed_up(base, ours, of="oracle", over="images"))

    Attributes:
        trials: the trial table as arrays.
        about: the contents of ``study.json``, {} without one.
    """

    def __init__(self, trials: Trials, about: Mapping[str, Any] | None = None) -> None:
        self.trials, self.about = trials, about or {}

    @property
    def setups(self) -> list[Setup]:
        """All setups: those of the table, and the smaller budgets that nested searches contain."""
        return [*self.trials.setups, *self.trials.smaller]

    @property
    def metrics(self) -> list[str]:
        """Names of the held-out metrics."""
        return self.trials.metrics

    @property
    def main(self) -> str:
        """The value that reports compare by: the study's first metric, or the verifier's score without one."""
        named = [m for m in self.about.get("metrics", ()) if m in self.metrics]
        return next(iter([*named, *self.metrics]), "score")

    def find(
        self,
        label: str,
        *,
        model: str | None = None,
        nfe: float | None = None,
        images: int | None = None,
        flops: float | None = None,
    ) -> Setup:
        """Return the only setup with this label, and with the model and limits that are given.

        Of a label with nested budgets the largest budget is returned where several fit.

        Raises:
            BadInput: no setup or several fit; the message lists the setups of the label.
        """
        labelled = self.find_label(label)
        wanted = {"model": model, "nfe": nfe, "images": images, "flops": flops}
        fitting = [
            a for a in labelled if all(value in (None, getattr(a, name)) for name, value in wanted.items())
        ]  # fmt: skip
        if len(fitting) > 1:  # the setup with the largest budget contains all the others
            whole = [a for a in fitting if a in self.trials.setups]
            fitting = whole if len(whole) == 1 and label in self.trials.nested else fitting
        if len(fitting) == 1:
            return fitting[0]
        known = ", ".join(f"{a.model} with {a.budget}" for a in labelled)
        raise BadInput(f"{'no' if not fitting else 'more than one'} setup of {label} fits. Known: {known}")

    def find_label(self, label: str) -> list[Setup]:
        """Return all setups of a label.

        Raises:
            BadInput: there are none; the message names the known labels.
        """
        found = [a for a in self.setups if a.label == label]
        if not found:
            raise unknown("strategy", label, sorted({a.label for a in self.setups}))
        return found

    def strategy(self, setup: Setup) -> str:
        """Return the registered name of a setup's strategy."""
        whole = [i for i, a in enumerate(self.trials.setups) if (a.model, a.label) == (setup.model, setup.label)]
        return self.trials.strategies[whole[0]]

    def pooled(self, setup: Setup) -> bool:
        """Return whether :meth:`panel` uses the order-statistics estimator."""
        return self.strategy(setup) in POOLED

    def panel(self, setup: Setup, of: str | None = None, over: str = "nfe") -> Panel:
        """Return quality by prompt and cost: from the pool of images for Best-of-N, else from the best image so far."""
        return (best_of_n if self.pooled(setup) else best_so_far)(self.trials, setup, of or self.main, over)

    def budgets(self, setups: Sequence[Setup], of: str | None = None, over: str = "nfe") -> Panel:
        """Return quality by prompt and cost with one point per setup: the returned images at their mean cost.

        For strategies that size themselves by their budget, whose small searches are not beginnings of large ones.

        Raises:
            BadInput: the setups have no prompt in common.
        """
        panels = sorted((self.final(setup, of, over) for setup in setups), key=lambda panel: panel.spent.mean())
        prompts = reduce(np.intersect1d, (panel.prompts for panel in panels))
        if not prompts.size:
            raise BadInput("the budgets have no prompt in common")
        same = [panel.among(prompts) for panel in panels]
        x, y = np.array([p.spent.mean() for p in same]), np.stack([p.final for p in same], axis=1)
        return replace(same[-1], x=x, y=y)

    def final(self, setup: Setup, of: str | None = None, over: str = "nfe", *, refined: bool = False) -> Panel:
        """Return the quality of the images that the searches returned; with ``refined``, of their best refined image.

        For Best-of-N it is the expectation over all subsets of the pool: the same mean with less noise.
        """
        panel = best_so_far(self.trials, setup, of or self.main, over, refined=refined)
        if refined or not self.pooled(setup):
            return panel
        count = int(spent(self.trials, setup, "images").min())
        pool = best_of_n(self.trials, searched(self.trials, setup), panel.of, over, most=count)
        return replace(panel, x=pool.x, y=pool.among(panel.prompts).y)

    def value(self, setup: Setup, of: str | None = None, *, refined: bool = False) -> Interval:
        """Return the mean quality of a setup's returned images."""
        return self.final(setup, of, refined=refined).interval()

    def spent(self, setup: Setup, over: str) -> float:
        """Return the mean total cost of a search of a setup."""
        return float(spent(self.trials, setup, over).mean())

    def difference(self, ours: Setup, theirs: Setup, of: str | None = None, *, refined: bool = False) -> Interval:
        """Return the mean difference in quality between the returned images of two setups, paired by prompt."""
        a, b = common(self.final(ours, of, refined=refined), self.final(theirs, of, refined=refined))
        return share_difference(a.final, b.final) if a.share else mean_interval(a.final - b.final)

    def win_rate(self, ours: Setup, theirs: Setup, of: str | None = None) -> WinRate:
        """Return how often ``ours`` returns the better image for a prompt, by the images of the searches themselves."""
        a, b = common(*(best_so_far(self.trials, setup, of or self.main, "nfe") for setup in (ours, theirs)))
        return win_rate(a.final, b.final)

    def speed_up(
        self, slow: Setup, fast: Setup, of: str | None = None, over: str = "nfe", quality: float | None = None
    ) -> SpeedUp:
        """Return how many times less ``fast`` costs at equal quality: :func:`~lotts_search.curves.speedup.speed_up`."""
        return speed_up(self.panel(slow, of, over), self.panel(fast, of, over), quality)

    def tradeoff(self, setups: Sequence[Setup], of: str | None = None, over: str = "nfe") -> Tradeoff:
        """Return a held-out value against the guiding score along the curve of a label: of its only setup, or with one
        point per budget.

        Raises:
            BadInput: some images lack the value, or the budgets have no prompt in common.
        """
        if len(setups) == 1:
            return tradeoff(self.panel(setups[0], "score", over), self.panel(setups[0], of, over))
        return tradeoff(self.budgets(setups, "score", over), self.budgets(setups, of, over))

    def saturation(self, setup: Setup, of: str | None = None, over: str = "nfe") -> Saturation:
        """Fit q∞ − c·n^−γ to a setup's curve."""
        return fit(self.panel(setup, of, over))


def load(*runs: Path | str, price: Price | None = None) -> Results:
    """Read the results of a study from its run folder or from a ``trials.parquet``.

    Several runs are read as one study: all their strategies are compared with each other, and a search that two runs
    have under the same label counts once.

    Args:
        price: gives the FLOPs of counted work, such as ``flops`` of :class:`lotts_search.work.prices.Prices`, instead of
            those in the table.

    Raises:
        BadInput: there is no trial table, or it is empty or lacks a column.
    """
    return _load(runs, False, price)[0]


def load_whole(*runs: Path | str, price: Price | None = None) -> tuple[Results, pa.Table]:
    """Read the results as :func:`load` does, and return them with all columns of the trial table."""
    return _load(runs, True, price)


def _load(runs: Sequence[Path | str], whole: bool, price: Price | None) -> tuple[Results, pa.Table]:
    read = [load_table(run, whole=whole) for run in runs]
    about, table = _merged([about for _, about in read]), join([table for table, _ in read])
    return Results(from_table(table, about, price), about), table


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the first ``study.json`` with the metrics, models, strategies, budgets and searches of all of them."""
    merged = dict(parts[0]) if parts else {}
    for name in ("metrics", "models", "strategies", "budgets", "unchecked", "searches"):
        items = [item for part in parts for item in part.get(name, ())]
        merged[name] = [item for i, item in enumerate(items) if item not in items[:i]] if name != "searches" else items
    return merged
