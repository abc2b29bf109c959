"""Denoising-error contrast: a region is damaged where the low-quality prompt explains the re-noised latent better.

A training-free log-likelihood ratio. With ``E_c(u) = mean over channels of (x̂0_c(u) − x0(u))²`` on a re-noised latent
under p+ and p−, the map is ``E_pos − E_neg``, or with ``relative`` ``log E_pos − (1 − w)·log E_neg`` of the smoothed
errors, where w is the weight of the foreground.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lotts_search.backbones.base import Backbone
from lotts_search.errors import BadInput
from lotts_search.localization.plan import PredictionRow
from lotts_search.localization.select import flat, from_heat, smooth
from lotts_search.work.masks import ErrorContrastMask
from lotts_search.work.noise import draw
from lotts_search.work.requests import Floats, Locate, Located

_TINY = 1e-6
"""Added to errors before the logarithm; far below any error of a latent of unit variance."""


class ErrorContrastLocalization:
    """One localization by denoising error; a :class:`~lotts_search.localization.plan.PredictionPlan`.

    Attributes:
        rows: for each level and draw one under p+ and one under p−, with the same noise.
    """

    def __init__(self, backbone: Backbone, work: Locate, source: ErrorContrastMask):
        if source.draws < 1 or not source.levels:
            raise BadInput("an error contrast needs at least one level and one draw")
        self._backbone, self._source, self._clean = backbone, source, work.state.latent
        self._scales = [backbone.train_level(level) for level in source.levels]
        prompt = work.sampling.prompt
        prompts = source.high.replace("{}", prompt), source.low.replace("{}", prompt)
        self.rows: list[PredictionRow] = []
        for index, (level, (alpha, sigma)) in enumerate(zip(source.levels, self._scales, strict=True)):
            for number in range(source.draws):
                noise = draw(work.search_seed, work.lineage, "locate", index * source.draws + number, self._clean.shape)
                latent = np.float32(alpha) * self._clean + np.float32(sigma) * noise
                self.rows += [PredictionRow(latent, float(level), text) for text in prompts]

    def finish(self, outputs: list[Tensor]) -> Located:
        """Return the mask from the raw network outputs [C, H, W] of the rows.

        Each level's map is averaged over draws and divided by its spatial standard deviation, so that levels have equal
        weight whatever the size of their errors. The maps are averaged over levels and smoothed. Ratios are taken of
        smoothed errors, because single errors come close to zero.
        """
        source, device = self._source, outputs[0].device
        latents = torch.from_numpy(np.stack([row.latent for row in self.rows])).to(device)
        scales = torch.tensor(self._scales, dtype=torch.float32, device=device)
        scales = scales.repeat_interleave(2 * source.draws, 0)[:, :, None, None, None]
        x0 = self._backbone.to_x0(torch.stack(outputs), latents, scales[:, 0], scales[:, 1])
        error = (x0 - torch.tensor(self._clean, device=device)).square().mean(1).cpu().numpy()
        pairs = error.reshape(len(source.levels), source.draws, 2, *error.shape[1:]).mean(1)
        stages: dict[str, Floats] = {}
        if source.relative:
            for name, values in zip(("high", "low"), pairs.mean(0), strict=True):
                stages[f"{name} prompt"] = values
            soft = np.log([[smooth(m, source.smooth) + _TINY for m in pair] for pair in pairs])
            maps = soft[:, 0] - (1 - source.foreground) * soft[:, 1]
        else:
            maps = pairs[:, 0] - pairs[:, 1]
        total = np.zeros(maps.shape[1:])
        for level, values, pair in zip(source.levels, maps, pairs, strict=True):
            stages[f"level {level}"] = values
            scale = 1.0 if source.relative else float(pair.max())
            total += 0 if flat(values, scale) else values / values.std()
        stages["contrast"] = (total / len(maps)).astype(np.float32)
        heat = stages["contrast"]
        if not source.relative:
            heat = stages["smoothed"] = smooth(heat, source.smooth)
        return from_heat(heat, source.ratio, (heat.shape[0], heat.shape[1]), stages)
