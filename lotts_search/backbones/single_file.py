"""Explain a model that is given as one file: which adapter or pipeline it is, and how to convert it. Imports no torch."""

from __future__ import annotations

import shlex
from pathlib import Path

from lotts_search.errors import BadInput

_PIPELINES = {
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_blocks.": "FluxPipeline",
}
"""Pipelines by a part of a name that only their checkpoints hold, as published before diffusers' format; others are taken for
Stable Diffusion."""


def refuse_file(path: Path) -> BadInput:
    """Return the error for a file that stands where a model folder belongs."""
    names = _names(path) if path.suffix == ".safetensors" else []
    if any("lora_" in name for name in names):
        return BadInput(
            f"{path} is a LoRA adapter, not a model: add it to a model with --lora {shlex.quote(str(path))}"
        )
    if path.suffix not in (".safetensors", ".ckpt"):
        return BadInput(f"{path} is a file, not a model folder in diffusers format")
    kind = next(
        (kind for part, kind in _PIPELINES.items() if any(part in name for name in names)), "StableDiffusionPipeline"
    )
    source, folder = repr(str(path)), repr(str(path.with_suffix("")))
    program = f"from diffusers import {kind}; {kind}.from_single_file({source}).save_pretrained({folder})"
    # In double quotes it is easier to read.
    word = shlex.quote(program) if set(program) & set('"$`\\!') else f'"{program}"'
    return BadInput(f"{path} is a single file; convert it once to a folder and use that: python -c {word}")


def _names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError):
        return []
