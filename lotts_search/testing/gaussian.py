"""A diffusion model of one Gaussian number. Every solver is a linear recursion on it: all distributions are known exactly.

``x0 ~ N(mean, variance)``, so ``E[x0 | x]`` is linear in x, each step of a solver is linear in the latent, the history and
the noise, and the results of a search are Gaussian with the moments of :meth:`Gaussian.law`: those of the discretised
process, not of the model itself. A reward ``r = slope·x0 + curve·x0² + offset`` tilts this Gaussian to another one, see
:meth:`Gaussian.tilted`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lotts_search.engine.solver import LATENT, NOISE, PREVIOUS, X0, coefficients
from lotts_search.testing.mixture import schedule
from lotts_search.work.masks import WholeMask
from lotts_search.work.model import Defaults, ModelInfo
from lotts_search.work.prices import Prices
from lotts_search.work.requests import Bytes, Floats, Solver


@dataclass(frozen=True)
class Gaussian:
    """The model, for :class:`~lotts_search.testing.analytic.AnalyticPool`, and its reward.

    Attributes:
        mean, variance: moments of x0.
        slope, curve, offset: coefficients of the reward.
    """

    mean: float = 0.5
    variance: float = 0.5
    slope: float = 1.0
    curve: float = 0.0
    offset: float = 0.0

    shape = (1, 1, 1)

    def predict(self, latent: Floats, alpha: float, sigma: float) -> Floats:
        slope, start = self._line(alpha, sigma)
        return np.asarray(slope * latent.astype(np.float64) + start, np.float32)

    def image(self, latent: Floats) -> Bytes:
        """Return the four bytes of the number as an image [1, 4, 3], so that nothing is lost."""
        return np.repeat(np.frombuffer(latent.tobytes(), np.uint8)[None, :, None], 3, axis=2)

    def latent(self, image: Bytes) -> Floats:
        return np.frombuffer(image[0, :, 0].tobytes(), np.float32).reshape(self.shape)

    def score(self, image: Bytes) -> float:
        x = float(self.latent(image)[0, 0, 0])
        return self.slope * x + self.curve * x * x + self.offset

    def damage(self, latent: Floats) -> Floats:
        return np.ones(self.shape[1:], np.float32)

    def info(self, steps: int, solver: Solver = "dpm", eta: float = 1.0) -> ModelInfo:
        """Return what a search must know of the model: it is unguided, and its mask is the whole image."""
        defaults = Defaults(steps, 1.0, steps // 2, 1, eta, solver, WholeMask())
        return ModelInfo("gaussian", "analytic", self.shape, (1, 4), Prices(row=1.0), defaults)

    def law(self, steps: int, solver: Solver = "dpm", eta: float = 1.0) -> tuple[float, float]:
        """Return the mean and the variance of samples with this many steps."""
        times, table = schedule(steps), coefficients(schedule(steps), eta, solver)
        mean, covariance = np.zeros(2), np.diag([1.0, 0.0])  # of the latent and the x0 prediction before it
        for i in range(steps):
            slope, start = self._line(times.alpha[i], times.sigma[i])
            c = table[int(i > 0), i]
            move = np.array([[c[LATENT] + c[X0] * slope, c[PREVIOUS]], [slope, 0.0]])
            mean = move @ mean + start * np.array([c[X0], 1.0])
            covariance = move @ covariance @ move.T + np.diag([c[NOISE] ** 2, 0.0])
        return float(mean[0]), float(covariance[0, 0])

    def tilted(self, mean: float, variance: float, strength: float) -> tuple[float, float, float]:
        """Tilt ``N(mean, variance)`` by ``exp(λ·r)``; return its mean and variance, and the logarithm of ``E[exp(λ·r)]``.

        The result must be a Gaussian: ``1/variance > 2·λ·curve``.
        """
        precision = 1 / variance - 2 * strength * self.curve
        pull = mean / variance + strength * self.slope
        log = 0.5 * (pull**2 / precision - mean**2 / variance - math.log(variance * precision))
        return pull / precision, 1 / precision, log + strength * self.offset

    def _line(self, alpha: float, sigma: float) -> tuple[float, float]:
        """Return the slope and the intercept of ``E[x0 | x]``."""
        slope = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return slope, self.mean * (1 - slope * alpha)
