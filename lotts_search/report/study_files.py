"""The numbers of a study as files for papers: CSV tables, PNG and PDF figures."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lotts_search.curves import AXES, Setup
from lotts_search.errors import BadInput
from lotts_search.report.study_numbers import Numbers, Trace
from lotts_search.report.study_page import chosen_labels

INK = ("#d5541c", "#2f66c4", "#3d8b4f", "#8a4fb0", "#b7791f", "#1b8a8f", "#b33771", "#63636e")
"""Colours of lines, as those of the page."""


def write_tables(found: Numbers, folder: Path) -> list[Path]:
    """Write ``results.csv``, ``curves.csv`` and ``against.csv``."""
    costs = list(AXES)
    results = [
        (*_key(line.setup), of, i.mean, i.low, i.high, line.prompts, line.searches, *(line.costs[c] for c in costs))
        for line in found.lines
        for of, i in line.values.items()
    ]
    curves = [
        (t.model, t.label, t.of, t.over, *map(float, point))
        for t in found.traces
        for point in zip(t.curve.x, t.curve.mean, t.curve.low, t.curve.high, strict=True)
    ]
    against = [
        (*_key(a.setup), a.base.label, a.base.budget, found.main, a.difference.mean, a.difference.low,
         a.difference.high, a.wins.rate, a.wins.low, a.wins.high, over, s.ratio, s.low, s.high, s.quality, s.slow,
         s.fast, s.reached)
        for a in found.against
        for over, s in a.faster.items()
    ]  # fmt: skip
    key = ("model", "label", "budget_nfe", "budget_images")
    return [
        _write(folder / "results.csv", (*key, "value", "mean", "low", "high", "prompts", "searches", *costs), results),
        _write(folder / "curves.csv", ("model", "label", "value", "over", "cost", "mean", "low", "high"), curves),
        _write(
            folder / "against.csv",
            (*key, "baseline", "baseline_budget", "value", "difference", "difference_low", "difference_high", "win_rate",
             "win_low", "win_high", "over", "speed_up", "speed_up_low", "speed_up_high", "quality", "baseline_cost", "cost",
             "reached"),
            against,
        ),
    ]  # fmt: skip


def _key(setup: Setup) -> tuple[str, str, float | None, int | None]:
    return setup.model, setup.label, setup.nfe, setup.images


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    os.replace(temporary, path)
    return path


def write_figures(found: Numbers, folder: Path) -> list[Path]:
    """Write a PNG and a PDF for each model, with the main value and the guide's score over images and over NFE.

    Raises:
        BadInput: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise BadInput("figures need matplotlib: pip install 'lotts-search[figures]'") from error
    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for model in dict.fromkeys(t.model for t in found.traces):
        labels = chosen_labels(found, model)
        values = list(dict.fromkeys([found.main, "score"]))
        with matplotlib.rc_context(
            {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
        ):
            figure = Figure(figsize=(6.8, 2.6 * len(values)), layout="constrained")
            axes = figure.subplots(len(values), 2, squeeze=False)
            for row, of in enumerate(values):
                for column, over in enumerate(("images", "nfe")):
                    ax = axes[row][column]
                    for t in found.traces:
                        if (t.model, t.of, t.over) == (model, of, over) and t.label in labels:
                            _draw(ax, t, INK[labels.index(t.label)])
                    ax.set_xscale("log")
                    ax.set_xlabel(AXES[over])
                    ax.set_ylabel(of)
            handles, names = axes[0][0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 4), frameon=False)
            for kind in ("png", "pdf"):
                path = folder / f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in model)}.{kind}"
                figure.savefig(path, dpi=200, metadata={"CreationDate": None} if kind == "pdf" else None)
                written.append(path)
    return written


def _draw(ax: object, trace: Trace, colour: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(ax, Axes)
    curve = trace.curve
    if trace.points or len(curve.x) == 1:
        ax.errorbar(curve.x, curve.mean, [curve.mean - curve.low, curve.high - curve.mean], color=colour, marker="o",
                    markersize=3, linewidth=1.2, capsize=2, label=trace.label)  # fmt: skip
        return
    ax.plot(curve.x, curve.mean, color=colour, linewidth=1.2, label=trace.label, drawstyle="steps-post")
    ax.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0, step="post")
