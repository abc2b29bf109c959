"""``lotts-search theory``."""

from __future__ import annotations

import dataclasses
import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lotts_search.cli.options import Json
from lotts_search.errors import BadInput

if TYPE_CHECKING:
    from lotts_search.shapes.measure.regimes import Finding


def theory(
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a study that used a shapes model and kept its images.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Measure this shapes model instead, slice by slice.")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Images per slice, with --model.")] = 60,
    device: Annotated[str, typer.Option(help="Torch device, with --model.")] = "cpu",
    json: Json = False,
) -> None:
    """Compare local with global search: the prediction of LoTTS's appendix G against the measured gain.

    The theory describes a mask by its precision and recall, and local and global trials by their probabilities to repair
    a defective cell (q) and to harm an intact one (h). The command estimates all of these from images that shapes-oracle
    judges, in slices from sparse to dense defects and for defects of the whole image. It then compares the prediction
    with the measured gain in quality per NFE, once with every trial accepted, as in the theory, and once with the better
    of parent and child kept, as in a search.

    Examples:

        lotts-search theory runs/my-study

        lotts-search theory --model shapes-sd --images 40
    """
    if (run is None) == (model is None):
        raise BadInput("give either the folder RUN of a study, or --model NAME")
    from lotts_search.shapes.measure import regimes

    if run is not None:
        slices, cost_local, cost_global = regimes.from_run(run)
    else:
        from lotts_search.core.costs import Costs
        from lotts_search.engine.local_pool import LocalPool
        from lotts_search.registry import load_backbone
        from lotts_search.work.requests import Sampling

        assert model is not None
        with LocalPool(load_backbone(model, device=device), {}, batch=32, pad=False) as pool:
            slices = regimes.measured(pool, images)
            costs = Costs.of(pool.info, Sampling.of(pool.info, "any"))
        cost_local, cost_global = (costs.localize() + costs.refine()).nfe, costs.sample.nfe
    found = {name: regimes.find(trials, cost_local, cost_global) for name, trials in slices.items()}
    if json:
        print(json_module.dumps({name: _plain(finding) for name, finding in found.items()}, ensure_ascii=False))
    else:
        _show(found, cost_local, cost_global)


def verdicts(finding: Finding) -> dict[str, bool]:
    """Return whether local beats global, by the theory and as measured."""
    regime = finding.regime
    if regime is None or finding.local is None or finding.global_ is None:
        return {}
    assert finding.kept_local is not None and finding.kept_global is not None
    return {
        "should": regime.local_wins(),
        "did": finding.local.mean > finding.global_.mean,
        "should, best kept": regime.local_improves_faster(),
        "did, best kept": finding.kept_local.mean > finding.kept_global.mean,
    }


def _plain(finding: Finding) -> dict[str, object]:
    regime = finding.regime
    if regime is None:
        return {"trials": finding.trials, "why not": finding.why}
    needed = {"required_precision": regime.required_precision, "required_recall": regime.required_recall}
    predicted = {
        "gain_local": regime.gain_local,
        "gain_global": regime.gain_global(),
        "improvement_local": regime.improvement_local(),
        "improvement_global": regime.improvement_global(),
    }
    measured = {
        name.rstrip("_"): str(getattr(finding, name)) for name in ("local", "global_", "kept_local", "kept_global")
    }
    return {
        "trials": finding.trials,
        "regime": dataclasses.asdict(regime),
        **needed,
        "predicted": predicted,
        "measured per NFE": measured,
        "local beats global": verdicts(finding),
    }


def _show(found: dict[str, Finding], cost_local: float, cost_global: float) -> None:
    from rich.table import Table

    from lotts_search.cli.console import Console

    console = Console()
    console.print(
        f"A local trial costs {cost_local:.1f} NFE (including its share of a mask), a global one {cost_global:.1f}.\n"
    )
    numbers = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("slice", "trials", "m of N", "p", "needs p", "recall", "needs", "q l", "h l", "q g", "h g"):
        numbers.add_column(heading)
    answers = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("slice", "local / 1000 NFE", "global / 1000 NFE", "should", "did", "should*", "did*"):
        answers.add_column(heading)
    for name, finding in found.items():
        r, won = finding.regime, verdicts(finding)
        if r is None or finding.local is None or finding.global_ is None:
            numbers.add_row(name, str(finding.trials), finding.why)
            continue
        needs = r.required_recall
        shares = (r.repair_local, r.harm_local, r.repair_global, r.harm_global)
        numbers.add_row(
            name,
            str(finding.trials),
            f"{r.defects:.1f} of {r.patches:g}",
            f"{r.precision:.2f}",
            f"{r.required_precision:.2f}",
            f"{r.recall:.2f}",
            "any" if needs < 0 else "unreachable" if needs > 1 else f"{needs:.2f}",
            *(f"{share:.2f}" for share in shares),
        )
        gains = [
            f"{1000 * i.mean:+.1f} ({1000 * i.low:+.1f} to {1000 * i.high:+.1f})"
            for i in (finding.local, finding.global_)
        ]
        answers.add_row(name, *gains, *("local" if won[key] else "global" for key in won))
    console.print(numbers)
    console.print("\nWinner by quality per NFE (* = keeping the better of parent and child):\n")
    console.print(answers)
