"""``lotts-search bench``: measure the framework itself."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lotts_search.cli.command_line import Command
from lotts_search.cli.options import Json, image_size
from lotts_search.errors import BadInput, unknown

if TYPE_CHECKING:
    from lotts_search.bench.families import Report

bench = typer.Typer(no_args_is_help=True, help="Measure the framework on this machine.")


@bench.callback()
def explain() -> None:
    """Measure the framework on this machine."""


@bench.command(cls=Command)
def families(
    family: Annotated[
        list[str] | None, typer.Option("--family", "-f", help="sd, sdxl or flux; repeatable [all three].")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="Torch device [CUDA if available].")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Precision: float32, bfloat16 or float16.")] = "bfloat16",
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="WIDTHxHEIGHT", help="Size of the images in pixels [the published size]."),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth", min=1, help="FLUX: number of double-stream blocks, with twice as many single-stream blocks [19]."
        ),
    ] = None,
    tied: Annotated[
        bool,
        typer.Option("--tied", help="FLUX: share the weights of the first block of each kind, to fit into memory."),
    ] = False,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Include the text encoders (FLUX: 5 B more weights).")
    ] = True,
    timed: Annotated[int, typer.Option("--timed", min=1, help="Number of steps to time.")] = 3,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Denoising steps T of the search [the family's].")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=3, help="Images of the search.")] = 9,
    batch: Annotated[int, typer.Option("--batch", min=2, help="Maximum network rows per call in the search.")] = 8,
    json: Json = False,
) -> None:
    """Dry-run SD2.1, SDXL and FLUX.1-schnell: the published configurations with random weights.

    Time a step, a localization and a decoding, then run a whole LoTTS search with masks. Nothing is downloaded.

        lotts-search bench families --device cuda

        lotts-search bench families --family sd --device cpu --no-text --timed 1 --steps 1 --images 3

        lotts-search bench families --family flux --device cpu --tied --no-text --timed 1 --steps 1 --images 3
    """
    import torch

    from lotts_search.backbones.load_options import DTYPES
    from lotts_search.bench.families import measure
    from lotts_search.bench.published import FAMILIES, Builder

    for name in family or []:
        if name not in FAMILIES:
            raise unknown("family", name, FAMILIES)
    if dtype not in DTYPES:
        raise BadInput(f"dtype must be {', '.join(DTYPES)}, not {dtype!r}")
    pixels = None if size is None else image_size(size)
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise BadInput(f"device must be cpu, cuda or cuda:N, not {device!r}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BadInput("this machine has no CUDA device")
    builder = Builder(place, getattr(torch, dtype), pixels, depth, text, tied)
    reports = []
    for name in family or list(FAMILIES):
        reports.append(measure(name, builder, timed=timed, steps=steps, images=images, batch=batch))
        if not json:
            _show(reports[-1])
    if json:
        print(json_module.dumps([asdict(report) for report in reports]))


@bench.command(cls=Command)
def ratios(
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="engine, search, searches, batch, fill, localization, ray, memory, masked or confined; repeatable [all of them].",
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A Stable Diffusion model.")] = "shapes-sd",
    verifier: Annotated[
        str | None, typer.Option("--verifier", "-v", help="Verifier of the searches [the model's].")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of what alternates.")] = 3,
    batch: Annotated[int, typer.Option("--batch", min=2, help="Network rows per call.")] = 16,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Torch's threads; with 1, CPU time counts.")] = 1,
    device: Annotated[str | None, typer.Option("--device", help="Torch device [CUDA if available].")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Precision: float32, bfloat16 or float16.")] = "float32",
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Let the engine record network calls as CUDA graphs.")
    ] = False,
    svg: Annotated[Path | None, typer.Option("--svg", help="Also draw the ratios into this file.")] = None,
) -> None:
    """Compare the framework with bare networks, pipelines and loops, side by side in one run, as a Markdown table.

    Everything takes about ten minutes on one free core.

        lotts-search bench ratios

        lotts-search bench ratios --only search --only fill --rounds 9
    """
    import torch

    from lotts_search.backbones.stable_diffusion import StableDiffusion
    from lotts_search.bench.ratios import HEAD, PARTS, draw, row
    from lotts_search.bench.setting import Setting
    from lotts_search.registry import default_verifier, load_backbone

    for name in only or []:
        if name not in PARTS:
            raise unknown("part", name, PARTS)
    verifier = verifier or default_verifier(model)
    torch.set_num_threads(threads)
    backbone = load_backbone(model, device=device, dtype=dtype)
    if not isinstance(backbone, StableDiffusion):
        raise BadInput(
            f"ratios are measured on Stable Diffusion models, and {model} is of the family {backbone.info.family}"
        )
    setting = Setting(model, backbone, verifier, batch, rounds, threads, graphs)
    found = []
    print(HEAD)
    for name, part in PARTS.items():
        if not only or name in only:
            for ratio in part(setting):
                found.append(ratio)
                print(row(ratio), flush=True)
    if svg is not None:
        draw(found, svg)


def _show(report: Report) -> None:
    from rich.table import Table

    from lotts_search.cli.console import Console

    height, width = report.image
    table = Table(box=None, pad_edge=False, show_header=False, title=f"{report.model}, {report.dtype}, {report.device}")
    rows = {
        "images": f"{width}x{height}, latent {'x'.join(map(str, report.latent))}, grid {report.grid[0]}x{report.grid[1]}",
        "network": f"{report.parameters / 1e9:.2f} B parameters, {report.flops_per_row / 1e12:.2f} TFLOP per row",
        "step": f"{report.step_s:.3f} s ({report.rows} {'rows' if report.rows > 1 else 'row'})",
        "sample": f"{report.sample_s:.2f} s for {report.steps} steps, plus {report.decode_s:.3f} s for decoding",
        "localization": f"{report.localize_s:.3f} s, {report.localize_ratio:.1%} of a sample (at most {report.limit:.0%})",
        "memory": f"{report.peak_bytes / 2**30:.1f} GiB peak, {report.weights_bytes / 2**30:.1f} GiB of weights",
        "search": (
            f"{report.search_images} images of {report.search_steps} steps, {report.search_nfe:g} NFE,"
            f" {report.search_rows} rows, {report.search_s:.1f} s, {report.mask_cells} cells in a mask"
        ),
    }
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)
