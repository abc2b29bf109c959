"""``lotts-search demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lotts_search.cli import options as o


def demo(
    prompts: Annotated[
        int,
        typer.Option("--prompts", min=2, help="Number of test prompts, if the time allows.", rich_help_panel=o.SEARCH),
    ] = 48,
    nfe: Annotated[
        float | None,
        typer.Option("--nfe", help="Denoising steps per search [8 images' worth].", rich_help_panel=o.BUDGET),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", help="Time for all searches together, without start-up.", rich_help_panel=o.BUDGET),
    ] = 105,
    seed: o.Seed = 0,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model; may be repeated [all embedded ones].", rich_help_panel=o.SEARCH),
    ] = None,
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", help="The strategy to look at.", rich_help_panel=o.SEARCH)
    ] = "lotts",
    against: Annotated[
        str, typer.Option("--against", help="The strategy to compare with.", rich_help_panel=o.SEARCH)
    ] = "best-of-n",
    local: o.Local = False,
    address: o.Address = None,
    generators: o.Generators = None,
    device: o.Device = "cpu",
    batch: o.Batch = None,
    place: o.Place = None,
    limit: o.Limit = None,
    ship: o.Ship = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the page and the study.", rich_help_panel=o.OUTPUT)
    ] = Path("out/demo"),
    json: o.Json = False,
) -> None:
    """Compare LoTTS with Best-of-N on the embedded models, through Ray, and write a page to look at.

    Both search the same test prompts with the same seeds and the same number of denoising steps, guided by a learned
    reward; a held-out oracle then judges their images. When the time is up, the prompts that both have finished count.
    The same command resumes the demo; `lotts-search study` runs such studies of any size.

    Examples:

        lotts-search demo

        lotts-search demo --model shapes-sdxl --prompts 200 --seconds 3600 --generators 2
    """
    from lotts_search.cli.pools import Compute
    from lotts_search.cli.run_demo import run
    from lotts_search.core.recipe import option, repeating

    changes: dict[str, object] = {
        "name": f"{strategy} and {against}",
        "strategies": [strategy, against],
        "baselines": [against.rpartition(":")[2]],
        "prompts": {"from": "shapes-test", "count": prompts},
        "seeds": [seed],
        "seconds": seconds,
    }
    words = [*option("--prompts", prompts), *option("--seconds", seconds)]
    if model:
        changes["models"] = model
        words += [word for name in model for word in option("--model", name)]
    if nfe is not None:
        changes["budgets"] = {"nfe": nfe}
        words += option("--nfe", nfe)
    for name, value in (("strategy", strategy), ("against", against), ("seed", seed), ("out", out)):
        words += option(f"--{name}", value)
    compute = Compute.of(local, address, generators, device, batch, place, limit, ship)
    run(changes, compute, out, repeating("demo", [], words + compute.words()), json)
