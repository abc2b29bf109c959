"""``lotts-search study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lotts_search.cli import options as o


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.", show_default=False)],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="Run folder [runs/NAME]: a path, or a URL of a filesystem that fsspec knows, such as s3://bucket/run.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what there is to do, and an estimate of the time.")
    ] = False,
    local: o.Local = False,
    address: o.Address = None,
    generators: o.Generators = None,
    device: o.Device = "cpu",
    batch: o.Batch = None,
    place: o.Place = None,
    limit: o.Limit = None,
    ship: o.Ship = None,
    drivers: Annotated[
        int,
        typer.Option(
            "--drivers",
            min=1,
            help="Processes that share the searches and the generators, where one cannot keep hundreds of generators busy.",
            rich_help_panel=o.COMPUTE,
        ),
    ] = 1,
    driver: Annotated[Path | None, typer.Option("--driver", hidden=True)] = None,
    json: o.Json = False,
) -> None:
    """Run models × strategies × prompts × seeds × budgets, from one file into one folder.

    However a run ends, the same command resumes it, and no finished trial is run again. After a change of the file,
    the searches that it still contains are reused. `docs/study.md` describes the file, `docs/run-folder.md` the folder.

        # study.yaml
        model: shapes-sd
        strategies:
          - best-of-n
          - strategy: lotts
            grid: {refinements: [1, 2, 4]}
        prompts: {from: shapes-test, count: 50}
        budgets: {nfe: [48, 96]}
        metrics: [shapes-oracle]

    Examples:

        lotts-search study study.yaml --dry-run

        lotts-search study study.yaml --generators 2

        lotts-search study study.yaml --out runs/first --address auto
    """
    from lotts_search.cli.pools import Compute
    from lotts_search.cli.run_study import drive, run

    compute = Compute.of(local, address, generators, device, batch, place, limit, ship)
    if driver is not None:
        drive(file, compute, driver)
    else:
        run(file, compute, out, dry_run, json, drivers)
