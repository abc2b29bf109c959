"""``index.html`` of a study: its curves, tables, prompts, images and failures in one file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lotts_search.core.failures import Failures
from lotts_search.curves import AXES, Curve, Results, Setup
from lotts_search.report.colours import COLOURS, colours, css
from lotts_search.report.lineages import lineages
from lotts_search.report.page import large, number, write_page
from lotts_search.report.plot import Series, line_chart
from lotts_search.report.search_tree import build
from lotts_search.report.study_gallery import Case, guiding
from lotts_search.report.study_numbers import Against, Line, Numbers, Trace
from lotts_search.report.unscored import unscored

if TYPE_CHECKING:
    import pyarrow as pa

    from lotts_search.core.result import SearchResult

HEAD = {"images": "images", "nfe": "NFE", "rows": "rows", "flops": "FLOPs", "device_s": "device s"}
"""The names of the costs in tables."""


@dataclass(frozen=True)
class Shown:
    """A search that is shown as a tree, with a title, the label of its strategy and a note."""

    title: str
    label: str
    note: str
    result: SearchResult


def write_study_page(
    path: Path | str,
    results: Results,
    found: Numbers,
    table: pa.Table,
    *,
    cases: Mapping[str, Sequence[Case]],
    trees: Sequence[Shown] = (),
    command: str = "",
    files: Sequence[str] = (),
) -> Path:
    """Write the page of a study.

    Args:
        path: the HTML file.
        results, found: the study and its numbers.
        table: the trial table, for the failures.
        cases: best and worst prompts by model.
        trees: searches to show in full.
        command: the command that makes the page again.
        files: names of the files beside the page.
    """
    models = list(dict.fromkeys(line.setup.model for line in found.lines))
    colour = {label: css(place) for label, place in label_colours(found).items()}
    described = results.about.get("models") or [{}]
    view = SimpleNamespace(
        title=str(results.about.get("name") or Path(path).resolve().parent.name),
        facts=_facts(results, table, found.prices),
        main=found.main,
        verifier=" or ".join(filter(None, dict.fromkeys(guiding(results.about, m) for m in described)))
        or "the verifier",
        timed=results.about.get("seconds_limit"),
        notes=found.notes,
        unscored=unscored(table),
        lineages=[one for one in lineages(table) if one.selected],
        unchecked=results.about.get("unchecked") or [],
        colour=colour,
        sections=[_section(results, found, model, cases.get(model, ()), colour) for model in models],
        trees=[_tree(shown) for shown in trees],
        failures=failures(table),
        broken=[s for s in results.about.get("searches", ()) if s.get("status") == "failed"],
        command=command,
        made=str(results.about.get("command", "")),
        files=files,
        machine=_made_on(results.about),
    )
    return write_page("study.html.j2", Path(path), {"view": view})


def setup_name(setup: Setup, setups: Iterable[Setup]) -> str:
    """Return the label, with its budget if the label has several."""
    several = sum((a.model, a.label) == (setup.model, setup.label) for a in setups) > 1
    return f"{setup.label}, {setup.budget}" if several else setup.label


def _facts(results: Results, table: pa.Table, prices: str) -> list[tuple[str, str, str]]:
    import pyarrow.compute as pc

    about = results.about

    def total(name: str) -> float:
        return float(pc.sum(table.column(name)).as_py() or 0)

    done = len(results.trials.ids)
    planned = sum(s.get("status") != "done" for s in about.get("searches", ()))
    facts = [
        ("searches", number(done, 0), f"and {planned} not finished" if planned else ""),
        ("prompts", number(len(results.trials.prompts), 0), ""),
        ("trials", number(len(table), 0), ""),
        ("NFE", number(total("nfe"), 0), ""),
        ("images", number(total("images"), 0), ""),
        ("device time", f"{total('device_s') / 3600:.2f}", "h"),
        ("FLOPs", large(float(results.trials.columns["flops"].sum())), f"as {prices}" if prices else unpriced(table)),
    ]
    if (failed := Failures.of_table(table)).count:
        facts.insert(3, ("failed trials", number(failed.count, 0), ""))
    if about.get("seconds"):
        facts.append(("wall time", f"{about['seconds'] / 60:.1f}", "min"))
    if about.get("busy"):
        facts.append(("generators busy", f"{100 * about['busy']:.0f}", "%"))
    return facts


def unpriced(table: pa.Table) -> str:
    """Return what FLOPs leave out, because the verifier does not know what its scores cost; "" where it does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if "scores" not in table.column_names:
        return ""
    judged = pc.is_in(table.column("kind"), pa.array(["score", "compare"]))
    scored = table.filter(pc.and_(judged, pc.equal(table.column("decodes"), 0)))
    return (
        "without scores"
        if pc.sum(scored.column("scores")).as_py() and not pc.sum(scored.column("flops")).as_py()
        else ""
    )


def machine(about: Mapping[str, Any]) -> str:
    """Return the system, processors and devices of the machine in ``study.json``, without its name."""
    found = about.get("machine") or {}
    words = [str(found.get("platform", "")).split("-")[0], f"{found.get('cpus')} CPUs" if found.get("cpus") else ""]
    return ", ".join(filter(None, [*words, *dict.fromkeys(map(str, found.get("gpus") or ()))]))


def _made_on(about: Mapping[str, Any]) -> str:
    date = [time.strftime("%Y-%m-%d", time.gmtime(float(about["started"])))] if about.get("started") else []
    return ", ".join([*date, *filter(None, [machine(about)])])


def _section(
    results: Results, found: Numbers, model: str, cases: Sequence[Case], colour: Mapping[str, str]
) -> SimpleNamespace:
    lines = [line for line in found.lines if line.setup.model == model]
    labels = [label for label in dict.fromkeys(line.setup.label for line in lines) if label in colour]
    setups = [line.setup for line in lines]
    shown = list(dict.fromkeys(("images", found.cost)))
    rest = [over for over in AXES if over not in shown]
    return SimpleNamespace(
        model=model,
        head=[*found.values],
        lines=[_row(line, found, setups) for line in lines],
        best={of: max((line.values[of].mean for line in lines if of in line.values), default=np.nan)
              for of in found.values},
        legend=[(label, colour[label]) for label in labels],
        left_out=len({line.setup.label for line in lines}) - len(labels),
        charts=_charts(found, model, labels, colour, shown, found.values[:1] + found.values[-1:]),
        more=_charts(found, model, labels, colour, rest, found.values[:1])
        + _charts(found, model, labels, colour, shown, found.values[1:-1]),
        costs=[HEAD[over] for over in found.costs],
        against=_comparisons(found, model, setups),
        held=_held(found, model, labels, colour),
        declines=[h for h in found.held if h.model == model and h.curve.overoptimized],
        tasks=[SimpleNamespace(name=setup_name(task.setup, setups), label=task.setup.label, task=task)
               for task in found.tasks if task.setup.model == model],
        fits=[(label, fit) for (of_model, label), fit in found.fits.items() if of_model == model],
        cases=cases,
        gap=_gap(cases),
    )  # fmt: skip


def _gap(cases: Sequence[Case]) -> str:
    """Return the text that explains the order of the prompts."""
    if not cases:
        return ""
    names = [winner.label for winner in cases[0].winners[:2]]
    if len(names) < 2:
        return f"{names[0]}: the best ones first, the worst last."
    return f"{names[0]} minus {names[1]}: the largest gains first, the largest losses last. Framed: better than all others."


def label_colours(found: Numbers) -> dict[str, int]:
    """Return the labels that charts show with the places of their colours, the same for all models of a study.

    These are all labels; if there are more than colours, the baselines and those that rank best on average.
    """
    ranks: dict[str, list[int]] = {}
    for model in dict.fromkeys(line.setup.model for line in found.lines):
        mine = sorted((x for x in found.lines if x.setup.model == model), key=lambda x: -x.values[found.main].mean)
        for rank, label in enumerate(dict.fromkeys(line.setup.label for line in mine)):
            ranks.setdefault(label, []).append(rank)
    bases = {a.base.label for a in found.against}
    ranked = sorted(ranks, key=lambda label: (label not in bases, float(np.mean(ranks[label]))))
    kept = set(ranked[: len(COLOURS)])
    return colours([label for label in dict.fromkeys(line.setup.label for line in found.lines) if label in kept])


def _row(line: Line, found: Numbers, setups: Sequence[Setup]) -> SimpleNamespace:
    return SimpleNamespace(
        name=setup_name(line.setup, setups),
        label=line.setup.label,
        values=[line.values.get(of) for of in found.values],
        costs=[_cost(line.costs[over], over) for over in found.costs],
        searches=line.searches,
    )


def _cost(value: float, over: str) -> str:
    return large(value) if over == "flops" else number(value, 2 if over == "device_s" else 1)


def _charts(
    found: Numbers, model: str, labels: Sequence[str], colour: Mapping[str, str], axes: Sequence[str], of: Sequence[str]
) -> list[SimpleNamespace]:
    charts = []
    for value in dict.fromkeys(of):
        for over in axes:
            traces = [t for t in found.traces if (t.model, t.over, t.of) == (model, over, value) and t.label in labels]
            traces = [t for t in traces if t.curve.x[0] > 0]  # the axis is logarithmic
            if not traces:
                continue
            title = f"{value} against {found.axes[over]}"
            series = [_series(t, colour[t.label]) for t in sorted(traces, key=lambda t: labels.index(t.label))]
            charts.append(
                SimpleNamespace(title=title, svg=line_chart(series, found.axes[over], value, title, log=True))
            )
    return charts


def _held(found: Numbers, model: str, labels: Sequence[str], colour: Mapping[str, str]) -> list[SimpleNamespace]:
    """Return a chart of each held-out value against the guiding score."""
    charts = []
    mine = [h for h in found.held if h.model == model and h.label in labels and len(h.curve.cost) > 1]
    for of in dict.fromkeys(h.curve.of for h in mine):
        title = f"{of} against score, with more compute"
        series = [
            Series(h.label, colour[h.label], h.curve.score, h.curve.value,
                   dots=[(float(h.curve.score[-1]), float(h.curve.value[-1]))])
            for h in mine
            if h.curve.of == of
        ]  # fmt: skip
        charts.append(SimpleNamespace(title=title, svg=line_chart(series, "score", of, title, zero=False)))
    return charts


def _series(trace: Trace, colour: str) -> Series:
    curve: Curve = trace.curve
    dots = [(float(x), float(y)) for x, y in zip(curve.x, curve.mean, strict=True)]
    shown = dots if trace.points or len(dots) == 1 else []
    return Series(trace.label, colour, curve.x, curve.mean, curve.low, curve.high, step=not trace.points, dots=shown)


def _comparisons(found: Numbers, model: str, setups: Sequence[Setup]) -> dict[str, list[SimpleNamespace]]:
    """Return the rows of the comparisons with each baseline."""
    mine = [a for a in found.against if a.setup.model == model]
    return {
        base: [_versus(a, found, setups) for a in mine if a.base.label == base]
        for base in dict.fromkeys(a.base.label for a in mine)
    }


def _versus(a: Against, found: Numbers, setups: Sequence[Setup]) -> SimpleNamespace:
    differences = [a.differences.get(of) for of in found.values]
    return SimpleNamespace(
        name=setup_name(a.setup, setups),
        label=a.setup.label,
        rival=a.base.budget,
        differences=[
            ("", "") if d is None else (d.signed, "up" if d.low > 0 else "down" if d.high < 0 else "")
            for d in differences
        ],
        wins=str(a.wins),
        faster=[str(a.faster[over]) for over in found.costs],
    )


def _tree(shown: Shown) -> SimpleNamespace:
    result = shown.result
    best = result.best.trial_id if result.best is not None else None
    roots = build(result.trials, result.images, result.located, best)
    return SimpleNamespace(title=shown.title, label=shown.label, note=shown.note, prompt=result.prompt, roots=roots)


def failures(table: pa.Table) -> list[SimpleNamespace]:
    """Return failed and cancelled trials by strategy, kind and reason, the most frequent first."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if "status" not in table.column_names:
        return []
    bad = table.filter(pc.not_equal(table.column("status"), "done"))
    if not len(bad):
        return []
    reason = pc.list_element(pc.split_pattern(pc.fill_null(bad.column("error"), ""), "\n", max_splits=1), 0)
    counted = (
        pa.table({name: bad.column(name) for name in ("label", "status", "kind", "nfe")} | {"reason": reason})
        .group_by(["label", "status", "kind", "reason"])
        .aggregate([("nfe", "count"), ("nfe", "sum")])
        .sort_by([("nfe_count", "descending")])
    )
    return [
        SimpleNamespace(
            label=r["label"],
            status=r["status"],
            kind=r["kind"],
            reason=r["reason"],
            count=r["nfe_count"],
            nfe=number(r["nfe_sum"] or 0),
        )
        for r in counted.to_pylist()
    ]
