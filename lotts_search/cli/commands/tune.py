"""``lotts-search tune``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lotts_search.cli import options as o

if TYPE_CHECKING:
    from lotts_search.study.conduct import Conducted
    from lotts_search.study.tune import Tried


def tune(
    strategy: Annotated[
        str,
        typer.Argument(help="A name from `lotts-search strategies`, or package.module:Class.", show_default=False),
    ],
    model: o.Model = "shapes-sd",
    verifier: o.Verifier = None,
    set_: o.Set = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=VALUE,VALUE,…",
            help="Values to try of a setting, in place of the strategy's own; repeatable.",
            rich_help_panel=o.SEARCH,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=2, help="Settings to try; the defaults are one.", rich_help_panel=o.SEARCH)
    ] = 16,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="A file of prompts for tuning; the embedded models have shapes-tune.",
            rich_help_panel=o.SEARCH,
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=2, help="Number of prompts.", rich_help_panel=o.SEARCH)] = 32,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="Decides by a held-out metric, not by the verifier's scores.", rich_help_panel=o.SEARCH
        ),
    ] = None,
    seed: o.Seed = 0,
    dtype: o.Dtype = None,
    nfe: o.Nfe = None,
    images: o.Images = None,
    flops: o.Flops = None,
    as_: o.As = None,
    local: o.Local = False,
    address: o.Address = None,
    generators: o.Generators = None,
    device: o.Device = "cpu",
    batch: o.Batch = None,
    place: o.Place = None,
    limit: o.Limit = None,
    ship: o.Ship = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder [runs/tune-STRATEGY].", rich_help_panel=o.OUTPUT)
    ] = None,
    json: o.Json = False,
) -> None:
    """Tune a strategy's settings on tuning prompts, and print the best as settings to paste into a study file.

    A comparison is fair if all its strategies were tuned with the same effort: the same number of trials, prompts and the
    same budget. Each strategy names the settings worth tuning and their ranges; `--vary` replaces them and adds others,
    `--set` fixes some. The trials cover the ranges evenly, the first is the defaults. All of them are one study, so the same
    command resumes, and more `--trials` continue. The default budget is 9 images.

    The best of many trials looks better than it is: report its results on other prompts. Sets of test prompts are refused.

    Examples:

        lotts-search tune particle --nfe 85 --trials 12

        lotts-search tune lotts --vary start=1,2,3,5 --metric shapes-oracle --out runs/lotts-tuned

        lotts-search tune svdd --model ./my-sdxl --prompts tuning.txt --count 64 --device cuda --dtype float16
    """
    import sys

    import yaml

    from lotts_search import registry
    from lotts_search.api import DEFAULT_IMAGES
    from lotts_search.cli.console import Console
    from lotts_search.cli.pools import Compute
    from lotts_search.cli.run_study import WIDTH, carry_out
    from lotts_search.errors import BadInput, Failure
    from lotts_search.study.metrics import columns_of
    from lotts_search.study.read import read_study
    from lotts_search.study.tune import points, ranked, space_of, study_of

    if prompts is None:
        if model not in registry.models():
            raise BadInput(f"{model} has no tuning prompts of its own: name a file, --prompts FILE")
        prompts = "shapes-tune"
    fixed = o.settings(set_)
    varied = o.settings(vary, "--vary").items()
    choices = {key: [yaml.safe_load(value) for value in str(values).split(",")] for key, values in varied}
    space = space_of(strategy, choices, fixed)
    settings = points(space, trials, seed)
    load = o.loading(dtype)
    budget = {name: limit for name, limit in (("nfe", nfe), ("images", images), ("flops", flops)) if limit is not None}
    said = study_of(
        strategy, settings, {key: yaml.safe_load(str(value)) for key, value in fixed.items()},
        model={"model": model, "options": load}, verifier=verifier, metrics=[metric] if metric else [],
        prompts=prompts, count=count, seed=seed,
        budget=budget or {"images": DEFAULT_IMAGES},
    ) | ({"as": as_} if as_ else {})  # fmt: skip
    path = out or Path("runs") / str(said["name"])
    file = path.with_name(f"{path.name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(said, sort_keys=False, allow_unicode=True), encoding="utf-8")
    console = Console(stderr=json, soft_wrap=True, width=WIDTH)
    console.print(f"tuning {', '.join(f'{key} in {_span(values)}' for key, values in space.items())}")
    compute = Compute.of(local, address, generators, device, batch, place, limit, ship)
    conducted = carry_out(read_study(file), compute, path, shlex.join(["lotts-search", *sys.argv[1:]]), console, json)
    found = ranked(settings, conducted.searches, columns_of([metric])[0] if metric else None)
    _show(strategy, fixed, found, conducted, file, console, json)
    if conducted.outcome.status == "interrupted":
        sys.exit(130)
    if conducted.outcome.status == "failed" or not found:
        why = [conducted.outcome.error, *conducted.outcome.errors.values()]
        raise Failure(next(filter(None, why), "no prompt was finished by all trials") + "; the same command resumes")


def _span(values: Any) -> str:
    return "{" + ", ".join(map(str, values)) + "}" if isinstance(values, list | tuple) else str(values)


def _show(
    strategy: str,
    fixed: dict[str, object],
    found: list[Tried],
    conducted: Conducted,
    file: Path,
    console: Any,
    json: bool,
) -> None:
    """Print the table of trials and the settings of the best one."""
    import json as json_module

    import yaml
    from rich.table import Table

    if json:
        rows = [
            {"settings": {**fixed, **one.settings}, "mean": one.mean, "difference": one.difference} for one in found
        ]
        status = conducted.outcome.status
        print(json_module.dumps({"strategy": strategy, "status": status, "trials": rows, "study": str(file)}))
        return
    if not found:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("mean", "− defaults", "± se", "settings"):
        table.add_column(heading, justify="left" if heading == "settings" else "right")
    for one in found:
        difference = (f"{one.difference[0]:+.3f}", f"{one.difference[1]:.3f}") if one.settings else ("", "")
        shown = ", ".join(f"{key}: {value}" for key, value in one.settings.items()) or "the defaults"
        table.add_row(f"{one.mean:.3f}", *difference, shown)
    console.print(table)
    best = yaml.safe_dump({**fixed, **found[0].settings}, default_flow_style=True, width=WIDE).strip()
    console.print(f"\nthe best of {len(found)} trials on {len(found[0].values)} tuning prompts:")
    console.print(f"  - {{strategy: {strategy}, settings: {best}}}")
    console.print(f"study    {file}")


WIDE = 10_000
"""Columns of a line of YAML, so that it is one line."""
