"""What the operations of a search cost in floating-point operations: on a model (:class:`Prices`), and on published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lotts_search.errors import unknown


@dataclass(frozen=True)
class Prices:
    """Floating-point operations of one operation of each kind; 0 = not known. A multiplication with an addition is two.

    Attributes:
        row: a network row.
        decode: an image from its latent.
        preview: an image of an x0 prediction of a partial candidate: by the tiny decoder if there is one, else ``decode``.
        encode: a latent from an image.
        score: a score of the verifier.
        rows_per_step: network rows of a denoising step as users run the model, whatever the steps that are counted took; None =
            as counted.
        tokens: the part of ``row`` that grows with the number of image tokens that are computed; 0 = the network computes all.
    """

    row: float = 0.0
    decode: float = 0.0
    preview: float = 0.0
    encode: float = 0.0
    score: float = 0.0
    rows_per_step: int | None = None
    tokens: float = 0.0

    def confined(self, active: float) -> float:
        """Return what a row that computes this share of the image tokens costs, as a share of a whole one; rounded up to 1/1024, so
        that sums of NFE are exact."""
        return math.ceil(1024 * (1 - (1 - active) * self.tokens / self.row)) / 1024 if self.row else 1.0

    def flops(self, counts: Mapping[str, Any]) -> Any:
        """Return the FLOPs of counted work.

        Args:
            counts: network rows (``rows``, or with ``rows_per_step`` instead ``steps``, denoising steps, and ``located``, rows of
                localizations), ``decodes``, ``previews`` (which are among the decodes), ``encodes`` and ``scores``; numbers
                or arrays of one shape; those that are missing are 0. Others do not count.
        """
        decodes, previews, encodes, scores = (
            counts.get(name, 0) for name in ("decodes", "previews", "encodes", "scores")
        )
        if self.rows_per_step is None:
            rows = counts.get("rows", 0)
        else:
            rows = counts.get("steps", 0) * self.rows_per_step + counts.get("located", 0)
        return (
            rows * self.row
            + (decodes - previews) * self.decode
            + previews * self.preview
            + encodes * self.encode
            + scores * self.score
        )


_SCORE = 137_781_397_536
_WHOLE = {
    "sd21": Prices(
        2_149_105_745_920, 5_754_304_364_544, 5_754_304_364_544, 2_609_118_314_496, _SCORE, 2, 2_144_901_611_520
    ),
    "sdxl": Prices(
        6_761_236_398_080, 10_470_392_594_432, 10_470_392_594_432, 4_878_950_727_680, _SCORE, 2, 6_708_327_874_560
    ),
    "flux": Prices(
        69_466_626_981_888, 10_472_204_009_472, 10_472_204_009_472, 4_882_572_509_184, _SCORE, 1, 65_366_717_890_560
    ),
}
_TINY = {"sd21": 318_037_819_392, "sdxl": 565_400_567_808, "flux": 565_627_060_224}
PUBLISHED: Mapping[str, Prices] = _WHOLE | {
    f"{name}+tiny": replace(_WHOLE[name], preview=preview) for name, preview in _TINY.items()
}
"""Prices of SD2.1 at 768 pixels and of SDXL at 1024 pixels, both guided, and of FLUX.1-schnell at 1024 pixels, without guidance,
with ImageReward; ``+tiny``: x0 predictions are decoded by diffusers' AutoencoderTiny. ``python -m lotts_search.bench.prices`` counts them again."""


def published(name: str) -> Prices:
    """Return the prices of a published model.

    Raises:
        BadInput: there is none of this name; the message names those that there are.
    """
    if name not in PUBLISHED:
        raise unknown("price list", name, PUBLISHED)
    return PUBLISHED[name]
