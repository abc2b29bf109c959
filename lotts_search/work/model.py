"""What a search must know of a model: plain data that both wings speak, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from lotts_search.work.masks import AttentionMask, MaskSource
from lotts_search.work.prices import Prices
from lotts_search.work.requests import Solver


@dataclass(frozen=True)
class Defaults:
    """A model's own settings (docs/architecture.md, LoTTS): used wherever a caller does not choose.

    Attributes:
        steps: T.
        guidance: guidance weight; above 1 a step is guided.
        t0: step a refinement starts from.
        integrate: tg, the number of last steps without the mask.
        eta: noise amount of the solver.
        solver: the sampler, ``dpm`` (SDE-DPM-Solver++(2M)) or ``ddim``.
        mask: how the region is found.
    """

    steps: int
    guidance: float
    t0: int
    integrate: int
    eta: float = 1.0
    solver: Solver = "dpm"
    mask: MaskSource = field(default_factory=AttentionMask)

    def scaled(self, steps: int) -> Self:
        """Return the settings on a schedule of ``steps`` steps; t0 and tg keep their share of the schedule."""
        if steps == self.steps:
            return self
        t0 = min(max(round(self.t0 * steps / self.steps), 0), steps - 1)
        integrate = min(round(self.integrate * steps / self.steps), steps - t0)
        return replace(self, steps=steps, t0=t0, integrate=integrate)


@dataclass(frozen=True)
class ModelInfo:
    """What a search must know of a model; plain data.

    Attributes:
        name: as given by the user.
        family: e.g. ``stable-diffusion``.
        latent: (C, H, W).
        image: (height, width) in pixels.
        prices: what its operations cost; a search asks its pool for what scores cost.
        defaults: the model's own settings.
        embedded_guidance: the guidance weight is an input of the network, so a step takes one row at any weight;
            otherwise guidance is classifier-free.
        loaded: the load options that affect its images, as JSON; "" where they are not known.
        patch: side of one network token in latent cells; masks are made of whole tokens.
        confines: side in latent cells of the tokens that the network can compute without the others, see
            :mod:`lotts_search.work.confined`; 0 = it cannot, as one that is compiled, None = not known before the model is loaded.
        scheduler: class of the scheduler in the model's folder, "" where it is not known. Its noise levels are used, but
            the solver of the sampling settings replaces it.
    """

    name: str
    family: str
    latent: tuple[int, int, int]
    image: tuple[int, int]
    prices: Prices
    defaults: Defaults
    embedded_guidance: bool = False
    patch: int = 1
    loaded: str = ""
    scheduler: str = ""
    confines: int | None = 0


@dataclass(frozen=True)
class Schedule:
    """A schedule of T steps. Arrays are float64.

    Attributes:
        alpha: [T + 1], ``x_i = alpha_i·x0 + sigma_i·ε``; the last entry is (1, 0), or the last one of a scheduler that
            stops earlier, whose latent counts as clean.
        sigma: [T + 1].
        timestep: [T], the network's timestep input at step i.
        start: scale of the noise that a trajectory starts from.
    """

    alpha: npt.NDArray[np.float64]
    sigma: npt.NDArray[np.float64]
    timestep: npt.NDArray[np.float64]
    start: float = 1.0
