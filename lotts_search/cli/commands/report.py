"""``lotts-search report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lotts_search.cli import options as o


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Folder of a study, a path or a URL, or a trials.parquet.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the report [RUN/report].", rich_help_panel=o.OUTPUT)
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="The value that decides [the study's first metric].")
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            "--cost",
            help="The cost that decides: images, nfe, rows, flops or device_s [flops where all budgets limit it, else nfe].",
        ),
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="MODEL",
            help="Price FLOPs as on a published model with ImageReward: sd21, sdxl or flux, or with +tiny by its tiny "
            "decoder [as the study did].",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            help="Label to compare the others with; may be repeated [the study's, else Best-of-N, else the first].",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option("--prompts", min=0, help="Number of best and of worst prompts to show.")] = 6,
    trees: Annotated[
        int | None,
        typer.Option(
            "--trees",
            min=0,
            help="Prompts whose searches are repeated and shown as trees [2 on embedded models, else 0].",
        ),
    ] = None,
    figures: Annotated[
        bool | None, typer.Option("--figures/--no-figures", help="PNG and PDF figures [if matplotlib is installed].")
    ] = None,
    device: o.Device = "cpu",
    json: o.Json = False,
) -> None:
    """Make a report of a study: one HTML page with curves, tables, prompts and searches; CSV and Markdown tables; figures.

    Several RUNs are read as one study, whose strategies are compared with each other. The page is one file and needs no
    network. It can be made while the study is running.

    Examples:

        lotts-search report runs/lotts-against-best-of-n

        lotts-search report runs/lotts-against-best-of-n --cost flops --as sdxl

        lotts-search report runs/table-01 runs/table-08 --out out/ablation --baseline LoTTS
    """  # fmt: skip
    from contextlib import ExitStack

    from lotts_search.cli.write_report import Wanted, run
    from lotts_search.errors import BadInput
    from lotts_search.study.remote import fetched, is_remote

    if out is None and is_remote(runs[0]):
        raise BadInput(f"where shall the report of {runs[0]} go? Give a local folder by --out")
    with ExitStack() as opened:
        folders = [opened.enter_context(fetched(place)) for place in runs]
        run(
            Wanted(
                folders, out, metric, cost, prices or "", baseline or [], prompts, trees, figures, device, places=runs
            ),
            json,
        )
