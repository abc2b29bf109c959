"""``lotts-search submit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lotts_search.cli import options as o


def submit(
    words: Annotated[
        list[str],
        typer.Argument(metavar="STUDY.yaml | -- generate PROMPT …", help="A study, or a search.", show_default=False),
    ],
    address: Annotated[
        str,
        typer.Option(
            "--address",
            envvar="RAY_API_SERVER_ADDRESS",
            help="Dashboard of the cluster.",
            rich_help_panel=o.COMPUTE,
        ),
    ] = "http://127.0.0.1:8265",
    generators: o.Generators = None,
    device: o.Device = "cpu",
    include: Annotated[
        list[Path] | None,
        typer.Option(
            "--include", metavar="PATH", help="Send this file or folder, too; repeatable.", rich_help_panel=o.COMPUTE
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Folder of the results on the cluster [~/lotts-search/NAME].", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the job; what it has done is kept.")] = False,
) -> None:
    """Run a study, or one search, as a job on a Ray cluster.

    Sends the study file, the file of its prompts and the modules of its plug-ins, follows the log, and exits with the
    code of the job. Ctrl-C stops the job. The same command follows the job while it runs, and resumes the study after
    that: keep the results on a file system that all nodes share. `docs/cluster.md` is a guide.

    A cluster with a token: set `RAY_AUTH_MODE=token` and `RAY_AUTH_TOKEN`, as for `ray job submit`.

    Examples:

        lotts-search submit study.yaml --address http://HEAD:8265 --out /shared/runs/first --generators 4 --device cuda

        lotts-search submit study.yaml --address http://HEAD:8265 --out /shared/runs/first --stop

        lotts-search submit --address http://HEAD:8265 --out /shared/fox -- generate "a red fox" --nfe 400
    """
    from lotts_search.cli.run_submit import run

    options = ["--generators", str(generators)] if generators else []
    options += ["--device", device] if device != "cpu" else []
    raise typer.Exit(run(words, address, options, include or [], out, detach, stop))
