"""``lotts-search refine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lotts_search.cli import options as o


def refine(
    image: Annotated[Path, typer.Argument(help="Image to refine.", show_default=False)],
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", "-p", help="Text that the image should match.", show_default=False, rich_help_panel=o.SEARCH
        ),
    ],
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Black and white image: white is resampled [detected].", rich_help_panel=o.SEARCH),
    ] = None,
    model: o.Model = "shapes-sd",
    strategy: o.Strategy = None,
    verifier: o.Verifier = None,
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
    spread: o.Spread = None,
    channels_last: o.ChannelsLast = False,
    preview: o.Preview = None,
    compile: o.Compile = False,
    revision: o.Revision = None,
    variant: o.Variant = None,
    nfe: o.Nfe = None,
    images: o.Images = None,
    flops: o.Flops = None,
    as_: o.As = None,
    seconds: o.Seconds = None,
    target: o.Target = None,
    local: o.Local = False,
    address: o.Address = None,
    generators: o.Generators = None,
    device: o.Device = "cpu",
    batch: o.Batch = None,
    place: o.Place = None,
    limit: o.Limit = None,
    ship: o.Ship = None,
    out: o.Out = None,
    json: o.Json = False,
) -> None:
    """Refine IMAGE: resample its defective region several times and keep the best image.

    The region is detected, or given by --mask. The image is scaled to the model's size. It is a candidate itself, so the
    result never scores lower. The default budget is that of 9 images.

    Examples:

        lotts-search refine image.png --prompt "$PROMPT"

        lotts-search refine image.png --prompt "$PROMPT" --mask mask.png --images 16
    """
    from lotts_search.cli.pools import Compute
    from lotts_search.cli.run_search import Request, run

    parts = dtype, size, lora, vae_slicing, vae_tiling, offload, preview, compile, revision, variant, spread
    load = o.loading(*parts, channels_last)
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
        settings=o.settings(set_),
        solver=solver,
        eta=eta,
        load=load,
        flops=flops,
        as_=as_,
        batch=batch,
    )
    compute = Compute.of(local, address, generators, device, batch, place, limit, ship, load)
    run(request, compute, out, json)
