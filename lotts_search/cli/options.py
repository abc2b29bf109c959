"""Options that several commands share, and the reading of their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lotts_search.errors import BadInput

SEARCH, BUDGET, COMPUTE, OUTPUT = "What to search", "Budget", "Where to run", "Output"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name from `lotts-search models`, or a folder or hub id of diffusers' format.",
        rich_help_panel=SEARCH,
    ),
]
Strategy = Annotated[
    str,
    typer.Option(
        "--strategy",
        "-s",
        help="A name from `lotts-search strategies`, or package.module:Class.",
        rich_help_panel=SEARCH,
    ),
]
Verifier = Annotated[
    str,
    typer.Option("--verifier", "-v", help="What guides: see `lotts-search verifiers`.", rich_help_panel=SEARCH),
]
Seed = Annotated[int, typer.Option("--seed", help="Decides all noise of the search.", rich_help_panel=SEARCH)]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps of a picture [the model's].", rich_help_panel=SEARCH)
]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Guidance weight, 1 = none [the model's].", rich_help_panel=SEARCH)
]
Solver = Annotated[
    str | None,
    typer.Option("--solver", help="dpm (SDE-DPM-Solver++) or ddim [the model's].", rich_help_panel=SEARCH),
]
Eta = Annotated[
    float | None,
    typer.Option("--eta", help="The solver's noise: 1 = all, 0 = deterministic [the model's].", rich_help_panel=SEARCH),
]
Negative = Annotated[str, typer.Option("--negative", help="Negative prompt.", rich_help_panel=SEARCH)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the strategy; may be repeated. `lotts-search strategies NAME` lists them.",
        rich_help_panel=SEARCH,
    ),
]

Nfe = Annotated[float | None, typer.Option("--nfe", help="Denoising steps.", rich_help_panel=BUDGET)]
Images = Annotated[int | None, typer.Option("--images", help="Pictures.", rich_help_panel=BUDGET)]
Seconds = Annotated[float | None, typer.Option("--seconds", help="Seconds.", rich_help_panel=BUDGET)]
Target = Annotated[
    float | None, typer.Option("--target", help="Stop at a picture with this score.", rich_help_panel=BUDGET)
]

Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray.", rich_help_panel=COMPUTE)]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Join a Ray cluster: `auto`, `ray://head:10001`.", rich_help_panel=COMPUTE),
]
Generators = Annotated[
    int | None,
    typer.Option(
        "--generators", min=1, help="Generator actors [1; on CPUs 2, of one thread each].", rich_help_panel=COMPUTE
    ),
]
Device = Annotated[str, typer.Option("--device", help="Torch device of the generators.", rich_help_panel=COMPUTE)]

Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder of the results [made below out/].", rich_help_panel=OUTPUT)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT)]


def settings(pairs: Sequence[str] | None) -> dict[str, object]:
    """``["refinements=4", "ratio=0.3"]`` as a dictionary. Raises BadInput for a text without ``=``."""
    found: dict[str, object] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"--set takes KEY=VALUE, not {pair!r}")
        found[key.strip()] = value.strip()
    return found
