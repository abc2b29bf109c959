"""``lotts-search generate``."""

from __future__ import annotations

from typing import Annotated

import typer

from lotts_search.cli import options as o


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to generate an image for.", show_default=False)],
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
    rewriter: o.Rewriter = None,
    set_rewriter: o.SetRewriter = None,
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
    """Search for the best image of PROMPT within a budget.

    Writes `best.png` (its metadata holds the command that reproduces it), `trials.parquet` and `search.html`. Ctrl-C
    stops the search and writes the results so far. The default budget is 9 images.

    Examples:

        lotts-search generate "top left red circle, top blue star, left pink cross, center yellow square, right green ring, bottom cyan diamond on gray" --nfe 200

        lotts-search generate "$PROMPT" --strategy best-of-n --nfe 200 --seed 1 --json

        lotts-search generate "$PROMPT" --strategy lotts --set refinements=4 --seconds 20 --local

        lotts-search generate "$PROMPT" --flops 500e12 --as sdxl

        lotts-search generate "a red fox in the snow" --model ./my-sdxl --verifier image-reward --device cuda --dtype float16
    """
    from lotts_search.cli.pools import Compute
    from lotts_search.cli.run_search import Request, run

    parts = dtype, size, lora, vae_slicing, vae_tiling, offload, preview, compile, revision, variant, spread
    load = o.loading(*parts, channels_last)
    request = Request(
        "generate",
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
        settings=o.settings(set_),
        solver=solver,
        rewriter=rewriter,
        writing=o.settings(set_rewriter, "--set-rewriter"),
        eta=eta,
        load=load,
        flops=flops,
        as_=as_,
        batch=batch,
    )
    compute = Compute.of(local, address, generators, device, batch, place, limit, ship, load)
    run(request, compute, out, json)
