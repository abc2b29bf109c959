"""``lotts-search demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lotts_search.cli import options as o


def demo(
    prompts: Annotated[
        int, typer.Option("--prompts", min=2, help="At most so many test prompts.", rich_help_panel=o.SEARCH)
    ] = 48,
    nfe: Annotated[
        float | None,
        typer.Option("--nfe", help="Denoising steps a search [8 images' worth].", rich_help_panel=o.BUDGET),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", help="Seconds for all searches together.", rich_help_panel=o.BUDGET)
    ] = 105,
    seed: o.Seed = 0,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model to run on, several times for several [all embedded ones]."),
    ] = None,
    strategy: o.Strategy = "lotts",
    against: Annotated[
        str, typer.Option("--against", help="The strategy to compare with.", rich_help_panel=o.SEARCH)
    ] = "best-of-n",
    local: o.Local = False,
    address: o.Address = None,
    generators: o.Generators = None,
    device: o.Device = "cpu",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the page.", rich_help_panel=o.OUTPUT)] = Path(
        "out/demo"
    ),
    json: o.Json = False,
) -> None:
    """LoTTS against Best-of-N on the embedded models, through Ray; ends with a page to look at.

    Both search the same test prompts with the same seeds and the same number of denoising steps, guided by a learned
    reward. An oracle that guides neither then judges the winners. When the time is up, the prompts that both have
    finished count.

    Examples:

        lotts-search demo

        lotts-search demo --model shapes-sdxl --prompts 200 --seconds 3600 --generators 2
    """
    from lotts_search.cli.contest import MODELS, Contest, run
    from lotts_search.cli.pools import Compute

    contest = Contest((strategy, against), tuple(model) if model else MODELS, prompts, nfe, seconds, seed)
    run(contest, Compute(local, address, generators, device), out, json)
