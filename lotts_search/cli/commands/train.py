"""``lotts-search train``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer


def train(
    name: Annotated[
        str,
        typer.Argument(
            help="`shapes-sd`, `shapes-sdxl`, `shapes-flux`, `shapes-reward` or `shapes-reward-x0`.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the model [default: out/NAME].", show_default=False)
    ] = None,
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, help="Number of training images [depends on the device]."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.1, help="Train the denoiser for this time instead.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images per training step of the denoiser.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="Folder of a trained model to start from.", show_default=False)
    ] = None,
    renders: Annotated[
        Path | None,
        typer.Option("--renders", help="Folder of the training images; models may share it [default: below OUT]."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Torch device, e.g. cpu or cuda.")] = "cpu",
) -> None:
    """Train an embedded model. Rerunning the command resumes an interrupted training.

    Examples:

        lotts-search train shapes-reward

        lotts-search train shapes-sd --device cuda --out ./my-shapes

        lotts-search train shapes-flux --minutes 60 --renders out/renders
    """
    from lotts_search.shapes.train import Effort
    from lotts_search.shapes.train import train as run

    folder = out or Path("out") / name
    own = Effort.on(name, device)
    if images is None:
        images = own.images if minutes is None else sys.maxsize
    effort = replace(own, images=images, minutes=minutes, batch=batch or own.batch)
    written = run(name, folder, effort=effort, start=start, renders=renders, device=device)
    print(f"wrote {name} to {written}")
