"""``lotts-search set-metrics``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lotts_search.cli import options as o


def set_metrics(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a study.", show_default=False)],
    features: Annotated[
        str,
        typer.Option(
            "--features",
            help="What images are compared by: clip, shapes or package.module:Class, with settings as in"
            " NAME:KEY=VALUE,KEY=VALUE.",
        ),
    ] = "clip",
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Folder of images to compare with; without one there is only diversity."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV file of the table [RUN/set-metrics.csv].")
    ] = None,
    json: o.Json = False,
) -> None:
    """Compare the images that a study returned, as sets, with a reference and with each other.

    By model, strategy and budget: the Fréchet distance, KID and CMMD (CLIP's features only) to the reference, lower is
    better, and the diversity of the images of a prompt. None of them guides a search.

    Examples:

        lotts-search set-metrics runs/my-study --features clip:weights=./clip,device=cuda --reference photos

        lotts-search set-metrics runs/study --features shapes
    """
    from lotts_search.cli.write_set_metrics import run as write

    write(run, features, reference, out or run / "set-metrics.csv", json)
