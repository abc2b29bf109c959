"""The numbers of a study as files: CSV and Markdown tables, PNG and PDF figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lotts_search.curves import AXES, Setup
from lotts_search.curves.trials import LIMITS
from lotts_search.errors import BadInput
from lotts_search.report.colours import COLOURS
from lotts_search.report.page import large, write_csv, write_text
from lotts_search.report.plot import log_ticks
from lotts_search.report.study_numbers import Numbers, Trace, limits
from lotts_search.report.study_page import label_colours


def write_tables(found: Numbers, folder: Path) -> list[Path]:
    """Write ``results.csv``, ``curves.csv``, ``against.csv`` and ``results.md``; ``tasks.csv`` in studies of GenEval's tasks."""
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
    tasks = [
        (*_key(line.setup), tag, share.mean, share.low, share.high, line.prompts[tag])
        for line in found.tasks
        for tag, share in line.shares.items()
    ]
    key = ("model", "label", *LIMITS)
    files = [
        write_csv(folder / "results.csv", (*key, "value", "mean", "low", "high", "prompts", "searches", *costs), results),
        write_csv(folder / "curves.csv", ("model", "label", "value", "over", "cost", "mean", "low", "high"), curves),
        write_csv(
            folder / "against.csv",
            (*key, "baseline", "baseline_budget", "value", "difference", "difference_low", "difference_high", "win_rate",
             "win_low", "win_high", "over", "speed_up", "speed_up_low", "speed_up_high", "quality", "baseline_cost", "cost",
             "reached"),
            against,
        ),
        write_text(folder / "results.md", _markdown(found)),
    ]  # fmt: skip
    if tasks:
        head = (*key, "task", "share", "low", "high", "prompts")
        files.append(write_csv(folder / "tasks.csv", head, tasks))
    return files


def _key(setup: Setup) -> tuple[str, str, float | None, int | None, float | None]:
    return setup.model, setup.label, setup.nfe, setup.images, setup.flops


def _markdown(found: Numbers) -> str:
    """Tables of each model: the main value by strategy and budget, then all values of each budget, best first."""
    bases = list(dict.fromkeys(a.base.label for a in found.against))
    versus = {(a.setup, a.base.label): a.difference.signed for a in found.against}
    text: list[str] = []
    for model in dict.fromkeys(line.setup.model for line in found.lines):
        mine = sorted((x for x in found.lines if x.setup.model == model), key=lambda x: -x.values[found.main].mean)
        budgets = list(dict.fromkeys(x.setup.budget for x in sorted(mine, key=lambda x: limits(x.setup))))
        cells = {(x.setup.label, x.setup.budget): str(x.values[found.main]) for x in mine}
        # The order is that of the largest budget.
        labels = dict.fromkeys(x.setup.label for x in sorted(mine, key=lambda x: x.setup.budget != budgets[-1]))
        text += [f"## {model}\n", f"{found.main}, mean and 95 % interval, by budget:\n"]
        text.append(_table(["strategy", *budgets], [[x, *(cells.get((x, b), "") for b in budgets)] for x in labels]))
        for budget in budgets:
            lines = [x for x in mine if x.setup.budget == budget]
            text.append(f"### {model}, {budget}, {max(x.prompts for x in lines)} prompts\n")
            head = ["strategy", found.main, *(f"− {base}" for base in bases), *found.values[1:], "NFE", "images"]
            body = [
                [x.setup.label, str(x.values[found.main]), *(versus.get((x.setup, base), "") for base in bases),
                 *(f"{x.values[of].mean:.3f}" if of in x.values else "" for of in found.values[1:]),
                 f"{x.costs['nfe']:.1f}", f"{x.costs['images']:.1f}"]
                for x in lines
            ]  # fmt: skip
            text.append(_table(head, body))
    return "\n".join(text)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]) + "\n"


def write_figures(found: Numbers, folder: Path) -> list[Path]:
    """Write a PNG and a PDF for each model, with the main value and the verifier's score over images and over NFE.

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
    colour = label_colours(found)
    for model in dict.fromkeys(t.model for t in found.traces):
        values = list(dict.fromkeys([found.main, "score"]))
        with matplotlib.rc_context(
            {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
        ):
            figure = Figure(figsize=(6.8, 2.6 * len(values)), layout="constrained")
            axes = figure.subplots(len(values), 2, squeeze=False)
            for row, of in enumerate(values):
                for column, over in enumerate(("images", found.cost)):
                    ax = axes[row][column]
                    for t in found.traces:
                        if (t.model, t.of, t.over) == (model, of, over) and t.label in colour:
                            _draw(ax, t, COLOURS[colour[t.label]])
                    ax.set_xscale("log")
                    ax.minorticks_off()
                    ax.set_xticks(at := log_ticks(*ax.get_xlim()), [large(tick) for tick in at])
                    ax.set_xlabel(found.axes[over])
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
