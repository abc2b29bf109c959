"""``lotts-search export``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from lotts_search.cli import options as o


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a study.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.", show_default=False)],
    layout: Annotated[str, typer.Option("--layout", help="flat or geneval, see above.")] = "flat",
    metadata: Annotated[
        Path | None,
        typer.Option(
            "--metadata",
            help="For geneval: a JSONL file whose lines, by `prompt`, are copied to the folders [the tasks of the prompts].",
        ),
    ] = None,
    json: o.Json = False,
) -> None:
    """Copy the images that a study returned into folders that other projects' scorers read.

    There is one folder per model, strategy and budget. The layout `flat` has `p00000_s0.png` (first prompt, first seed) and
    `scores.jsonl` with prompt, seed, score and metrics of each image; `geneval` has `00000/metadata.jsonl` and
    `00000/samples/0000.png`, as GenEval's own scorer expects.

    Examples:

        lotts-search export runs/my-study --out out/images

        lotts-search export runs/geneval --out out/geneval --layout geneval --metadata evaluation_metadata.jsonl
    """
    from lotts_search.study.export import export as copied

    counts = copied(run, out, layout, metadata)
    if json:
        print(json_module.dumps({str(out / folder): count for folder, count in counts.items()}))
        return
    for folder, count in counts.items():
        print(f"{count} images  {out / folder}")
