"""Options shared by several commands, and parsers for their values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lotts_search.backbones.load_options import LoadOptions
from lotts_search.errors import BadInput

SEARCH, MODEL, BUDGET, COMPUTE, OUTPUT = "Search", "Model", "Budget", "Compute", "Output"
_SIZE = re.compile(r"\s*(\d{1,9})\s*(?:[x×]\s*(\d{1,9})\s*)?", re.ASCII | re.IGNORECASE)

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name from `lotts-search models`, or a model in diffusers format: a folder or a Hub id.",
        rich_help_panel=SEARCH,
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        "-s",
        help="A name from `lotts-search strategies`, or package.module:Class [adaptive-mosaic; adaptive-lotts where the"
        " verifier asks a server].",
        rich_help_panel=SEARCH,
    ),
]
Verifier = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        "-v",
        help="Scores images: a name from `lotts-search verifiers` or package.module:Class, with settings as in"
        " NAME:KEY=VALUE,KEY=VALUE [the model's].",
        rich_help_panel=SEARCH,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all noise of the search.", rich_help_panel=SEARCH)]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps per image [the model's].", rich_help_panel=SEARCH)
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", help="Guidance weight, 1 or more; 1 = off [the model's].", rich_help_panel=SEARCH),
]
Solver = Annotated[
    str | None,
    typer.Option("--solver", help="dpm (SDE-DPM-Solver++) or ddim [the model's].", rich_help_panel=SEARCH),
]
Eta = Annotated[
    float | None,
    typer.Option(
        "--eta", help="Noise of the solver: 1 = full, 0 = deterministic [the model's].", rich_help_panel=SEARCH
    ),
]
Negative = Annotated[
    str, typer.Option("--negative", help="Negative prompt; needs guidance above 1.", rich_help_panel=SEARCH)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set an option of the strategy; repeatable. `lotts-search strategies NAME` lists them.",
        rich_help_panel=SEARCH,
    ),
]

Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Precision: float32, bfloat16 or float16 [float32].", rich_help_panel=MODEL),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WIDTHxHEIGHT",
        help="Size of the images in pixels, or one number for squares [the model's].",
        rich_help_panel=MODEL,
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="SOURCE[:SCALE]",
        help="LoRA adapter: .safetensors file, folder, Hub id or Hub id/file; repeatable. Needs peft.",
        rich_help_panel=MODEL,
    ),
]
VaeSlicing = Annotated[
    bool, typer.Option("--vae-slicing", help="Decode images one by one, to save memory.", rich_help_panel=MODEL)
]
VaeTiling = Annotated[
    bool, typer.Option("--vae-tiling", help="Decode large images in tiles, to save memory.", rich_help_panel=MODEL)
]
Offload = Annotated[
    str | None,
    typer.Option(
        "--offload",
        help="Keep weights in CPU memory: `model` (one part at a time on the device) or `sequential` (one layer at a"
        " time, slow).",
        rich_help_panel=MODEL,
    ),
]
Spread = Annotated[
    int | None,
    typer.Option(
        "--spread",
        min=2,
        help="Let so many GPUs hold the weights of the model together, 2 or more; each generator on Ray then has as many.",
        rich_help_panel=MODEL,
    ),
]
Preview = Annotated[
    str | None,
    typer.Option(
        "--preview",
        metavar="MODEL",
        help="AutoencoderTiny that decodes unfinished images for the verifier.",
        rich_help_panel=MODEL,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the network's blocks: the first steps are slow, all later ones faster.",
        rich_help_panel=MODEL,
    ),
]
ChannelsLast = Annotated[
    bool,
    typer.Option(
        "--channels-last",
        help="Keep the weights of convolutions in channels-last format: faster with `refresh` on Stable Diffusion and SDXL.",
        rich_help_panel=MODEL,
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub id.", rich_help_panel=MODEL)
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Variant of the weight files, e.g. fp16.", rich_help_panel=MODEL)
]
Rewriter = Annotated[
    str | None,
    typer.Option(
        "--rewriter",
        help="Revises prompts, for strategies that use one: a name from `lotts-search rewriters`, or package.module:Class"
        " [the model's own].",
        rich_help_panel=SEARCH,
    ),
]
SetRewriter = Annotated[
    list[str] | None,
    typer.Option(
        "--set-rewriter",
        metavar="KEY=VALUE",
        help="Set an option of the rewriter; repeatable. `lotts-search rewriters NAME` lists them.",
        rich_help_panel=SEARCH,
    ),
]

Nfe = Annotated[
    float | None,
    typer.Option("--nfe", help="Network evaluations: denoising steps of all images.", rich_help_panel=BUDGET),
]
Flops = Annotated[
    float | None,
    typer.Option(
        "--flops",
        help="Floating-point operations of network, decoding, encoding and scores, such as 250e12.",
        rich_help_panel=BUDGET,
    ),
]
As = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="MODEL",
        help="Count FLOPs as on a published model with ImageReward: sd21, sdxl or flux, or with +tiny by its tiny decoder"
        " [the model's own].",
        rich_help_panel=BUDGET,
    ),
]
Images = Annotated[int | None, typer.Option("--images", help="Number of images.", rich_help_panel=BUDGET)]
Seconds = Annotated[float | None, typer.Option("--seconds", help="Wall-clock time in seconds.", rich_help_panel=BUDGET)]
Target = Annotated[
    float | None, typer.Option("--target", help="Stop once an image has this score.", rich_help_panel=BUDGET)
]

Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.", rich_help_panel=COMPUTE)]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="Join a Ray cluster: `auto`, `host:port` or `ray://host:port`.", rich_help_panel=COMPUTE
    ),
]
Generators = Annotated[
    int | None,
    typer.Option(
        "--generators",
        min=1,
        help="Number of generator actors [1 on a GPU; up to 2 on CPUs, with one thread each].",
        rich_help_panel=COMPUTE,
    ),
]
Place = Annotated[
    list[str] | None,
    typer.Option(
        "--place",
        metavar="NAME=VALUE",
        help="What actors on Ray take, and of which nodes; repeatable: gpus (of each generator, e.g. 0.5), verifiers (actors of each),"
        " verifier-gpus, rewriter-gpus, label.KEY, verifier-label.KEY, object-store-mb.",
        rich_help_panel=COMPUTE,
    ),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=SECONDS",
        help="How long actors on Ray may be quiet before they are replaced; repeatable: answer-s (one call, until it is known how"
        " long calls take) [900], ping-s (the process) [20], start-s (loading) [600], return-s (the network) [60], together-s"
        " (waiting for each other at the start) [30]; and attempts, deaths alone with one piece of work that end it [3].",
        rich_help_panel=COMPUTE,
    ),
]
Ship = Annotated[
    list[str] | None,
    typer.Option(
        "--ship",
        metavar="MODULE",
        help="Copy a module or package of this machine to the workers of the cluster at --address, such as the one of a plug-in,"
        " or lotts_search itself; repeatable. What they import must be there.",
        rich_help_panel=COMPUTE,
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="ROWS",
        help="Rows of each network call, 2 or more [8]; results are bitwise equal at an equal number. Or"
        " several sizes, as 2,4,8,16: each call has the smallest that holds its rows, which makes a search alone faster, but"
        " results equal ones only to rounding.",
        rich_help_panel=COMPUTE,
    ),
]
Device = Annotated[str, typer.Option("--device", help="Torch device of the generators.", rich_help_panel=COMPUTE)]

Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for the results [a new folder below out/].", rich_help_panel=OUTPUT),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.", rich_help_panel=OUTPUT)]


def loading(
    dtype: str | None = None,
    size: str | None = None,
    lora: list[str] | None = None,
    vae_slicing: bool = False,
    vae_tiling: bool = False,
    offload: str | None = None,
    preview: str | None = None,
    compile: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    spread: int | None = None,
    channels_last: bool = False,
) -> dict[str, object]:
    """Return the model options that were set, for :func:`~lotts_search.registry.load_backbone`.

    Raises:
        BadInput: an invalid value.
    """
    given: dict[str, object] = {
        "dtype": dtype,
        "size": None if size is None else image_size(size),
        "lora": lora,
        "vae_slicing": vae_slicing,
        "vae_tiling": vae_tiling,
        "offload": offload,
        "preview": preview,
        "compile": compile,
        "revision": revision,
        "variant": variant,
        "spread": spread,
        "channels_last": channels_last,
    }
    kept = {name: value for name, value in given.items() if value not in (None, False, [])}
    LoadOptions.of(kept)
    return kept


def image_size(text: str) -> tuple[int, int]:
    """Return height and width from ``WIDTHxHEIGHT`` or one number; raise BadInput for other texts."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise BadInput(f"--size takes WIDTHxHEIGHT or one number of pixels, not {text!r}")
    return int(found[2] or found[1]), int(found[1])


def settings(pairs: Sequence[str] | None, option: str = "--set") -> dict[str, object]:
    """Return ``["refinements=4", "ratio=0.3"]`` as a dictionary; raise BadInput for a text without ``=``, or a key
    that is given twice."""
    found: dict[str, object] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"{option} takes KEY=VALUE, not {pair!r}")
        if key.strip() in found:
            raise BadInput(f"{option} {key.strip()} is given twice")
        found[key.strip()] = value.strip()
    return found
