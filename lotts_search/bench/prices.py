"""What the operations of the published models cost, counted on their configurations without weights::

    python -m lotts_search.bench.prices

prints the numbers of :data:`lotts_search.work.prices.PUBLISHED`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, fields, replace

import torch
from diffusers import AutoencoderTiny

from lotts_search.backbones.flops import count_flops
from lotts_search.bench.published import FAMILIES, Builder
from lotts_search.verifiers import image_reward
from lotts_search.work.prices import Prices

MODELS = {"sd21": "sd", "sdxl": "sdxl", "flux": "flux"}
"""Family of each published model."""


def recounted() -> Iterator[tuple[str, Prices]]:
    """Count the prices of the published models at their published sizes with ImageReward, and with the tiny decoder."""
    builder, score = Builder(torch.device("meta"), torch.float32, text=False), image_reward.flops()
    for name, family in MODELS.items():
        info = FAMILIES[family](builder).info
        guided = info.defaults.guidance > 1 and not info.embedded_guidance
        whole = replace(info.prices, score=score, rows_per_step=2 if guided else 1)
        yield name, whole
        yield f"{name}+tiny", replace(whole, preview=_tiny(info.latent))


def _tiny(latent: tuple[int, int, int]) -> float:
    """Count the decoding of a latent (C, H, W) by diffusers' tiny decoder."""
    return count_flops(
        lambda: AutoencoderTiny(latent_channels=latent[0]), lambda part: part.decode(torch.empty(1, *latent))
    )


def main() -> None:
    """Print the prices, one line per model."""
    print(*(field.name for field in fields(Prices)))
    for name, prices in recounted():
        print(name, *(f"{value:_.0f}" for value in astuple(prices)))


if __name__ == "__main__":
    main()
