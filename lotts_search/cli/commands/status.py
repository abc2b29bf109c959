"""``lotts-search status``."""

from __future__ import annotations

from typing import Annotated

import typer

from lotts_search.cli import options as o


def status(
    folder: Annotated[
        str, typer.Argument(metavar="RUN", help="Run folder of a study: a path, or a URL.", show_default=False)
    ],
    json: o.Json = False,
) -> None:
    """Show how far a study is: searches, rate, time left, failures.

    Reads the files of the run folder, and nothing else: it works on any machine that sees the folder, while the study
    runs and after it. At a URL the study is as of its last upload.

    Examples:

        lotts-search status runs/study

        lotts-search status s3://bucket/runs/study
    """
    import json as json_module
    from dataclasses import asdict

    from lotts_search.cli.progress import span
    from lotts_search.study.status import status_of

    found = status_of(folder)
    if json:
        typer.echo(json_module.dumps(asdict(found)))
        return
    what = {"running": "running, last written", "silent": "not running any more, or stuck: last written"}
    word = what.get(found.status, f"{found.status}, last written")
    typer.echo(f"{found.name}: {word} {span(found.written_s)} ago" + (f": {found.error}" if found.error else ""))
    total = found.done + found.failed + found.open
    typer.echo(
        f"searches  {found.done} of {total} done, {found.failed} failed, {found.open} open, {found.begun} of them begun"
    )
    if found.rate is not None:
        left = "" if found.left_s is None or not found.open else f", at most {span(found.left_s)} left"
        typer.echo(f"cost      {found.nfe:,.0f} NFE of finished searches, {found.rate:.1f} a second{left}")
    if (now := found.now) is not None:
        typer.echo(
            f"now       {now.finished} of {now.searches} searches of this run, {now.rate:.1f} NFE a second, "
            f"{now.left:,.0f} NFE left; {now.waiting} pieces of work fill {now.fill:.0%} of the batches"
        )
    if found.busy is not None:
        typer.echo(f"busy      {found.busy:.0%} of the time of its generators")
    if found.failed_trials.count:
        typer.echo(f"failures  {found.failed_trials}")
    if found.status not in ("running", "done"):
        typer.echo(f"resume    {found.command}")
