"""Masks of several sources at once (LoTTS appendix F.2): the weighted mean of their rescaled heat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import rankdata

from lotts_search.backbones.base import Backbone
from lotts_search.localization.select import from_heat, unit
from lotts_search.work.masks import FusionMask, mask_to_dict
from lotts_search.work.mosaics import upsample
from lotts_search.work.requests import Floats, Locate, Located


class FusionLocalization:
    """One localization by several sources; a :class:`~lotts_search.localization.plan.FusionPlan`.

    Attributes:
        parts: one localization per source.
    """

    def __init__(self, backbone: Backbone, work: Locate, source: FusionMask):
        self._source, self._size = source, backbone.info.latent[1:]
        self.parts = [replace(work, source=part, blank="keep") for part in source.sources]

    def finish(self, found: list[Located]) -> Located:
        """Return the mask from the answers to the parts, on the grid of the latent."""
        source, size = self._source, self._size
        weights = np.array(source.weights or (1.0,) * len(found))
        stages: dict[str, Floats] = {}
        total = np.zeros(size)
        for number, (part, weight) in enumerate(zip(found, weights / weights.sum(), strict=True)):
            heat = upsample(part.heat, size)
            kind = mask_to_dict(source.sources[number])["kind"]
            values = stages[f"{number + 1} {kind}"] = _scaled(heat, source.scale)
            total += weight * values
        heat = stages["fused"] = total.astype(np.float32)
        return from_heat(heat, source.ratio, size, stages)


def _scaled(heat: Floats, scale: str) -> Floats:
    """Rescale a map to 0..1, by its range or by rank, with the mean rank for ties."""
    if scale == "range" or heat.size < 2:
        return unit(heat)
    ranks: Floats = ((rankdata(heat.ravel()) - 1) / (heat.size - 1)).reshape(heat.shape).astype(np.float32)
    return ranks
