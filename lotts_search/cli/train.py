"""``lotts-search train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    name: Annotated[str, typer.Argument(help="`shapes-sd` or `shapes-reward`.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the model [default: out/NAME].", show_default=False)
    ] = None,
    pictures: Annotated[
        int | None, typer.Option("--pictures", min=1, help="Training pictures; the model's own number when left out.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Torch device, e.g. cpu or cuda.")] = "cpu",
) -> None:
    """Train an embedded model from nothing. An interrupted training goes on where it stopped.

    Examples:

        lotts-search train shapes-reward

        lotts-search train shapes-sd --device cuda --out ./my-shapes
    """
    from lotts_search.shapes.train import train as run

    folder = out or Path("out") / name
    written = run(name, folder, device=device, pictures=pictures)
    print(f"{name} is in {written}")
