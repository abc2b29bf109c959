"""The sizes of a model's images, latents and tokens, from the configs in its folder; read before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_NETWORKS = {
    "StableDiffusionPipeline": "unet",
    "StableDiffusionXLPipeline": "unet",
    "StableDiffusion3Pipeline": "transformer",
}
"""The component whose ``sample_size`` is that of the latents, by pipeline."""
CONFINED_BLOCKS = frozenset(
    (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "UNetMidBlock2DCrossAttn",
        "UNetMidBlock2D",
        "UpBlock2D",
        "CrossAttnUpBlock2D",
    )
)
"""Blocks of U-Nets that can be confined to a mask."""


def image_size(pipeline: str, read: Callable[[str], Mapping[str, Any]]) -> tuple[int, int] | None:
    """Return height and width in pixels of the images of a model in diffusers format, unless load options change them; None
    where its configs do not tell.

    Args:
        pipeline: name of its pipeline.
        read: returns the content of a JSON file of the folder, {} if the folder does not have the file.
    """
    vae = read("vae/config.json")
    factor = _factor(vae)
    if pipeline == "FluxPipeline":
        side = vae.get("sample_size")
        latent = 2 * (side // (2 * int(factor))) if isinstance(side, int) and factor >= 1 else None
    else:
        latent = read(f"{_NETWORKS[pipeline]}/config.json").get("sample_size") if pipeline in _NETWORKS else None
    sides = [latent, latent] if isinstance(latent, int) else latent
    if not sides or factor < 1:
        return None
    return int(sides[0] * factor), int(sides[1] * factor)


def latent_size(image: tuple[int, int], read: Callable[[str], Mapping[str, Any]]) -> tuple[int, int, int] | None:
    """Return channels, height and width of the latents of images [height, width]; None where the configs do not tell.

    Args:
        read: as for :func:`image_size`.
    """
    vae = read("vae/config.json")
    factor, channels = _factor(vae), vae.get("latent_channels")
    return (channels, int(image[0] // factor), int(image[1] // factor)) if channels and factor >= 1 else None


def token_side(pipeline: str, read: Callable[[str], Mapping[str, Any]]) -> int | None:
    """Return the side in latent cells of the tokens that a network can compute without the others, unless it is compiled; None
    where the configs do not tell.

    Args:
        pipeline, read: as for :func:`image_size`.
    """
    if pipeline == "FluxPipeline":
        return 2
    config = read(f"{_NETWORKS[pipeline]}/config.json") if pipeline in _NETWORKS else {}
    if pipeline == "StableDiffusion3Pipeline":
        side = config.get("patch_size")
        return side if isinstance(side, int) else None
    blocks = {name for way in ("down_block_types", "up_block_types") for name in config.get(way, ())}
    return 1 if blocks and blocks <= CONFINED_BLOCKS else None


def _factor(vae: Mapping[str, Any]) -> float:
    """Return the pixels per latent pixel and side, below 1 where the config does not tell."""
    return 2.0 ** (len(vae.get("block_out_channels", ())) - 1)
