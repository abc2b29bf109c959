"""Disagreement between trajectories (LoTTS appendix F.2): where x0 predictions from different noise differ.

The latent is re-noised to a level by different draws. ``V(u) = mean over channels of Var over draws of x̂0(u)`` is low
where the prompt and the rest of the image determine the content.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lotts_search.backbones.base import Backbone
from lotts_search.errors import BadInput
from lotts_search.localization.plan import PredictionRow
from lotts_search.localization.select import flat, from_heat, smooth
from lotts_search.work.masks import DisagreementMask
from lotts_search.work.noise import draw
from lotts_search.work.requests import Floats, Locate, Located


class DisagreementLocalization:
    """One localization by disagreement; a :class:`~lotts_search.localization.plan.PredictionPlan`.

    Attributes:
        rows: the draws of each level, under the prompt.
    """

    def __init__(self, backbone: Backbone, work: Locate, source: DisagreementMask):
        if source.draws < 2 or not source.levels:
            raise BadInput("disagreement needs at least one level and two draws")
        self._backbone, self._source = backbone, source
        self._scales = [backbone.train_level(level) for level in source.levels]
        clean, prompt = work.state.latent, work.sampling.prompt
        self.rows: list[PredictionRow] = []
        for index, (level, (alpha, sigma)) in enumerate(zip(source.levels, self._scales, strict=True)):
            for number in range(source.draws):
                noise = draw(work.search_seed, work.lineage, "locate", index * source.draws + number, clean.shape)
                latent = np.float32(alpha) * clean + np.float32(sigma) * noise
                self.rows.append(PredictionRow(latent, float(level), prompt))

    def finish(self, outputs: list[Tensor]) -> Located:
        """Return the mask from the raw network outputs [C, H, W] of the rows. Each level's variance is divided by its
        spatial standard deviation, so that levels have equal weight."""
        source, device = self._source, outputs[0].device
        latents = torch.from_numpy(np.stack([row.latent for row in self.rows])).to(device)
        scales = torch.tensor(self._scales, dtype=torch.float32, device=device)
        scales = scales.repeat_interleave(source.draws, 0)[:, :, None, None, None]
        x0 = self._backbone.to_x0(torch.stack(outputs), latents, scales[:, 0], scales[:, 1])
        variance = x0.view(len(source.levels), source.draws, *x0.shape[1:]).var(1).mean(1).cpu().numpy()
        stages: dict[str, Floats] = {}
        total = np.zeros(variance.shape[1:])
        for level, values in zip(source.levels, variance, strict=True):
            stages[f"level {level}"] = values
            total += 0 if flat(values) else values / values.std()
        stages["variance"] = (total / len(variance)).astype(np.float32)
        heat = stages["smoothed"] = smooth(stages["variance"], source.smooth)
        return from_heat(heat, source.ratio, (heat.shape[0], heat.shape[1]), stages)
