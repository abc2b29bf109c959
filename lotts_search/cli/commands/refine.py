"""``lotts-search refine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lotts_search.cli import options as o


def refine(
    image: Annotated[Path, typer.Argument(help="The image to mend.", show_default=False)],
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="What it should show.", show_default=False, rich_help_panel=o.SEARCH)
    ],
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Black and white image: white is drawn anew [found].", rich_help_panel=o.SEARCH),
    ] = None,
    model: o.Model = "shapes-sd",
    strategy: o.Strategy = "lotts",
    verifier: o.Verifier = "shapes-reward",
    seed: o.Seed = 0,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    solver: o.Solver = None,
    eta: o.Eta = None,
    negative: o.Negative = "",
    set_: o.Set = None,
    dtype: o.Dtype = None,
    size: o.Size = None,
    lora: o.Lora = None,
    vae_slicing: o.VaeSlicing = False,
    vae_tiling: o.VaeTiling = False,
    offload: o.Offload = None,
    preview: o.Preview = None,
    compile: o.Compile = False,
    revision: o.Revision = None,
    variant: o.Variant = None,
    nfe: o.Nfe = None,
    images: o.Images = None,
    seconds: o.Seconds = None,
    target: o.Target = None,
    local: o.Local = False,
    address: o.Address = None,
    generators: o.Generators = None,
    device: o.Device = "cpu",
    out: o.Out = None,
    json: o.Json = False,
) -> None:
    """Mend IMAGE: draw its defective region anew, again and again, and keep the best image.

    The region is found, or given by --mask. The image is brought to the model's size. It takes part itself, so by the
    verifier the result is never worse. Without a budget 9 refinements are made.

    Examples:

        lotts-search refine image.png --prompt "$PROMPT"

        lotts-search refine image.png --prompt "$PROMPT" --mask mask.png --images 16
    """
    from lotts_search.cli.pools import Compute
    from lotts_search.cli.run_search import Request, run

    load = o.loading(dtype, size, lora, vae_slicing, vae_tiling, offload, preview, compile, revision, variant)
    request = Request(
        "refine",
        prompt,
        model,
        strategy,
        verifier,
        seed,
        nfe,
        images,
        seconds,
        target,
        steps,
        guidance,
        negative,
        image,
        mask,
        o.settings(set_),
        solver,
        eta,
        load,
    )
    run(request, Compute(local, address, generators, device, load), out, json)
