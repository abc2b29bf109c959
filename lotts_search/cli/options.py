"""Options that several commands share, and the reading of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from lotts_search.backbones.options import LoadOptions
from lotts_search.errors import BadInput

SEARCH, MODEL, BUDGET, COMPUTE, OUTPUT = "What to search", "How to load the model", "Budget", "Where to run", "Output"

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
    int | None, typer.Option("--steps", help="Denoising steps of an image [the model's].", rich_help_panel=SEARCH)
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

Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16 [float32].", rich_help_panel=MODEL),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WIDTHxHEIGHT",
        help="Pixels of the images, or one number [the model's].",
        rich_help_panel=MODEL,
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="SOURCE[:SCALE]",
        help="A LoRA adapter: .safetensors file, folder, hub id or hub id/file; may be repeated. Needs peft.",
        rich_help_panel=MODEL,
    ),
]
VaeSlicing = Annotated[
    bool, typer.Option("--vae-slicing", help="Decode images one by one: less memory.", rich_help_panel=MODEL)
]
VaeTiling = Annotated[
    bool, typer.Option("--vae-tiling", help="Decode large images in tiles: less memory.", rich_help_panel=MODEL)
]
Offload = Annotated[
    str | None,
    typer.Option(
        "--offload",
        help="Keep weights in CPU memory: `model` (parts take turns on the device) or `sequential` (layer by layer,"
        " slow).",
        rich_help_panel=MODEL,
    ),
]
Preview = Annotated[
    str | None,
    typer.Option(
        "--preview",
        metavar="MODEL",
        help="An AutoencoderTiny that decodes unfinished images for the verifier.",
        rich_help_panel=MODEL,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the network's blocks: slow first steps, faster later ones.", rich_help_panel=MODEL
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.", rich_help_panel=MODEL)]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Of the weight files, e.g. fp16.", rich_help_panel=MODEL)
]
Rewriter = Annotated[
    str | None,
    typer.Option(
        "--rewriter",
        help="What revises prompts, for strategies that ask: see `lotts-search rewriters` [shapes-rewriter].",
        rich_help_panel=SEARCH,
    ),
]
SetRewriter = Annotated[
    list[str] | None,
    typer.Option(
        "--set-rewriter",
        metavar="KEY=VALUE",
        help="A setting of the rewriter; may be repeated. `lotts-search rewriters NAME` lists them.",
        rich_help_panel=SEARCH,
    ),
]

Nfe = Annotated[float | None, typer.Option("--nfe", help="Denoising steps.", rich_help_panel=BUDGET)]
Images = Annotated[int | None, typer.Option("--images", help="Images.", rich_help_panel=BUDGET)]
Seconds = Annotated[float | None, typer.Option("--seconds", help="Seconds.", rich_help_panel=BUDGET)]
Target = Annotated[
    float | None, typer.Option("--target", help="Stop at an image with this score.", rich_help_panel=BUDGET)
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
) -> dict[str, object]:
    """The options of the model that were given, for :func:`~lotts_search.registry.load_backbone`.

    Raises:
        BadInput: a bad value.
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
    }
    kept = {name: value for name, value in given.items() if value}
    LoadOptions.of(kept)
    return kept


def image_size(text: str) -> tuple[int, int]:
    """Height and width from ``WIDTHxHEIGHT`` or one number. Raises BadInput for another text."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdigit() for side in sides):
        raise BadInput(f"--size takes WIDTHxHEIGHT or one number of pixels, not {text!r}")
    return int(sides[-1]), int(sides[0])


def loading_words(load: Mapping[str, object]) -> list[str]:
    """The words of the command line that give :func:`loading` back."""
    words: list[str] = []
    for name, value in load.items():
        option = f"--{name.replace('_', '-')}"
        if name == "size" and isinstance(value, Sequence):
            value = f"{value[1]}x{value[0]}"
        if value is True:
            words.append(option)
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [option, str(one)]
    return words


def settings(pairs: Sequence[str] | None, option: str = "--set") -> dict[str, object]:
    """``["refinements=4", "ratio=0.3"]`` as a dictionary. Raises BadInput for a text without ``=``."""
    found: dict[str, object] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"{option} takes KEY=VALUE, not {pair!r}")
        found[key.strip()] = value.strip()
    return found
