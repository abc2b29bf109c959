"""A closed-form diffusion model: each position of the latent is, independently, a mixture of two Gaussians.

A position holds ``x0 ~ w·N(+1, v) + (1 − w)·N(−1, v)``: +1 is intact, −1 damaged, and w is the same for all prompts. So
sampling and masked resampling work as in a real model, and the truth is known: any position that is drawn from noise is
intact with probability w.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lotts_search.work.model import Schedule
from lotts_search.work.requests import Floats

INTACT, VARIANCE = 0.7, 0.04
"""w and v."""


@lru_cache
def schedule(steps: int) -> Schedule:
    """Return a variance-preserving schedule: α = cos, σ = sin of an angle from nearly π/2 to 0."""
    angle = np.linspace(0.49 * np.pi, 0, steps + 1)
    return Schedule(np.cos(angle), np.append(np.sin(angle[:-1]), 0.0), np.linspace(999, 0, steps))


def posterior(latent: Floats, alpha: float, sigma: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return ``E[x0 | x]`` and ``P(intact | x)`` at each position of a latent ``x = alpha·x0 + sigma·ε``, by Bayes."""
    x = latent.astype(np.float64)
    variance = alpha**2 * VARIANCE + sigma**2
    log_odds = np.log(INTACT / (1 - INTACT)) + 2 * alpha * x / variance
    intact = 0.5 * (1 + np.tanh(log_odds / 2))
    shrink = alpha * VARIANCE / variance
    mean = intact * (1 + shrink * (x - alpha)) + (1 - intact) * (-1 + shrink * (x + alpha))
    return mean, intact
