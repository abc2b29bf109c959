"""``search.html``: the page of one search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from markupsafe import Markup

from lotts_search.core.result import SearchResult
from lotts_search.core.trial_table import TrialRecord
from lotts_search.curves.steps import StepFunction
from lotts_search.report.colours import colours, css
from lotts_search.report.images import data_uri
from lotts_search.report.lineages import lineages
from lotts_search.report.page import large, number, write_page
from lotts_search.report.plot import Series, line_chart
from lotts_search.report.search_tree import DRAWN, build
from lotts_search.report.unscored import unscored


def best_so_far(trials: Sequence[TrialRecord], over: str = "nfe_cum") -> StepFunction:
    """Return the verifier's score of the best complete image so far, in virtual order.

    Args:
        trials: records of one search, in virtual order.
        over: the cost: ``nfe_cum``, or ``images`` for the number of complete images.
    """
    x, y, images = [], [], 0
    for trial in trials:
        images += trial.images
        if trial.best_so_far is not None and not np.isnan(trial.best_so_far):
            x.append(float(images if over == "images" else trial.nfe_cum))
            y.append(float(trial.best_so_far))
    return StepFunction(np.array(x), np.array(y))


def search_chart(trials: Sequence[TrialRecord], label: str = "") -> Markup:
    """Draw the best score so far against NFE, with a dot for every scored trial, in the colour of a strategy."""
    steps = best_so_far(trials)
    dots = [(t.nfe_cum, t.score) for t in trials if t.score is not None and t.kind in DRAWN]
    line = Series("best so far", css(colours([label])[label]), steps.x, steps.y, step=True, dots=dots)
    return line_chart([line], "NFE", "score", "best score so far against NFE")


ENDED = {"target": "target score", "seconds": "time limit", "interrupted": "Ctrl-C"}
"""What ended a search early, by its status."""
LEDGER_HEAD = ("kind", "trials", "NFE", "rows", "FLOPs", "images", "decodes", "scores", "device s")


def ledger_lines(trials: Sequence[TrialRecord]) -> list[list[str]]:
    """Return one ledger line for each kind of trial, in order of first occurrence."""
    kinds = dict.fromkeys(t.kind for t in trials)
    return [_line(kind, [t for t in trials if t.kind == kind]) for kind in kinds]


def _line(name: str, trials: Sequence[TrialRecord]) -> list[str]:
    return [
        name,
        str(len(trials)),
        number(sum(t.nfe for t in trials)),
        number(sum(t.rows for t in trials), 0),
        large(sum(t.flops for t in trials)),
        str(sum(t.images for t in trials)),
        str(sum(t.decodes for t in trials)),
        str(sum(t.scores for t in trials)),
        number(sum(t.device_s for t in trials), 2),
    ]


def write_search_page(result: SearchResult, path: Path | str, command: str = "") -> Path:
    """Write the page of one search: its best image, tree, ledger, best-so-far curve and trials.

    Args:
        result: the result of :func:`lotts_search.search`.
        path: the HTML file; its folder is created.
        command: the command that repeats the search; shown if it is not empty.

    Returns:
        ``path``.
    """
    trials = result.trials
    best = result.best.trial_id if result.best is not None else None
    ledger = result.ledger
    flops = f"of {large(result.budget.flops)}" if result.budget.flops else ""
    flops += f" as {result.priced_as}" if result.priced_as else ""
    facts = [
        ("score", number(result.score, 4), ""),
        ("NFE", number(ledger.nfe), f"of {number(result.budget.nfe)}" if result.budget.nfe else ""),
        ("images", str(ledger.images), f"of {result.budget.images}" if result.budget.images else ""),
        ("FLOPs", large(ledger.flops), flops),
        ("network rows", number(ledger.rows, 0), ""),
        ("device time", f"{ledger.device_s:.1f}", "s"),
        ("model", result.model.name, ""),
        ("seed", str(result.seed), ""),
    ]
    if result.status != "done":
        facts.insert(0, ("ended by", ENDED[result.status], ""))
    if result.best_refined is not None and result.best_refined.score is not None:
        facts.insert(1, ("best refined", number(result.best_refined.score, 4), ""))
    for one in lineages(result.to_table()):
        if one.selected:
            facts.append(("lineages", f"{one.left:.0f}", f"of {one.begun:.0f} starts have images"))
    for share in unscored(result.to_table()).values():
        facts.append(("not scored", f"{100 * share:.0f}", "% of the images: the verifier did not choose"))
    if (failures := result.failures).count:
        facts.append(("failed trials", str(failures.count), f"of {failures.trials}"))
    if ledger.nfe_wasted:
        facts.append(("lost to failures", number(ledger.nfe_wasted), "NFE"))
    view = SimpleNamespace(
        strategy=result.strategy,
        prompt=result.prompt,
        image=data_uri(result.image) if result.image is not None else None,
        facts=facts,
        command=command,
        roots=build(trials, result.images, result.located, best),
        chart=search_chart(trials, result.strategy),
        ledger_head=LEDGER_HEAD,
        ledger=ledger_lines(trials),
        ledger_total=_line("all", trials),
        trials=trials,
        best=best,
    )
    return write_page("search.html.j2", Path(path), {"view": view})
