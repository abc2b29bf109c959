"""The solvers as per-row coefficients, so that one flat function moves a batch of unrelated trajectories.

``dpm`` is SDE-DPM-Solver++(2M), midpoint variant (DPM-Solver++, Lu et al. 2022, Eq. 9-11 and the SDE form of its
appendix). With ``x_i = a_i·x0 + s_i·ε``, ``λ = ln(a/s)``, ``h = λ_{i+1} − λ_i`` and ``r = (λ_i − λ_{i−1})/h`` a step is

    x_{i+1} = (s_{i+1}/s_i)·e^{−ηh}·x_i + a_{i+1}·(1 − e^{−(1+η)h})·[D_i + (D_i − D_{i−1})/(2r)]
              + s_{i+1}·√(1 − e^{−2ηh})·ξ

where ``D`` are x0 predictions. η = 1 is the SDE form of diffusers, η = 0 the deterministic DPM-Solver++; in between,
the noise is that of the reverse SDE with its diffusion term scaled by √η, which keeps the marginals for every η.
The first step of a trajectory and the step to s = 0 are of first order, as in diffusers with
``final_sigmas_type="zero"``.

``ddim`` is DDIM with η (Song et al. 2021, Eq. 12 and 16) for any ``a`` and ``s``, so also for flows. With
``ε = (x_i − a_i·D_i)/s_i`` and the noise ``n = η·s_{i+1}·√(1 − e^{−2h})`` a step is

    x_{i+1} = a_{i+1}·D_i + √(s²_{i+1} − n²)·ε + n·ξ

This η differs from the one of ``dpm``: the two give the same first-order steps at 0 and at 1, and different ones in
between. η = 1 draws from the posterior of x_{i+1} given x_i and x0 (DDPM); η = 0 is deterministic, and on a flow
schedule it is Euler's step. DDIM has no history and is finite at ``a_i = 0``, where a flow begins.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lotts_search.work.model import Schedule
from lotts_search.work.requests import Solver, check_eta

if TYPE_CHECKING:
    from torch import Tensor

LATENT, X0, PREVIOUS, NOISE = range(4)
"""Columns of the coefficients."""


def coefficients(schedule: Schedule, eta: float, solver: Solver = "dpm") -> npt.NDArray[np.float64]:
    """Return the coefficients [2, T, 4] of every step: index 0 without solver history, index 1 with it.

    Columns: factor of the latent, of the x0 prediction, of the previous x0 prediction and of the noise. The step to
    ``sigma = 0`` returns the x0 prediction itself: (0, 1, 0, 0).

    Raises:
        BadInput: ``eta`` is out of the solver's range, see :func:`~lotts_search.work.requests.check_eta`.
    """
    check_eta(eta, solver)
    if solver == "ddim":
        return _ddim(schedule, eta)
    alpha, sigma = schedule.alpha, schedule.sigma
    steps = len(schedule.timestep)
    table = np.zeros((2, steps, 4))
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    for i in range(steps):
        if sigma[i + 1] == 0:
            table[:, i] = (0, alpha[i + 1], 0, 0)
            continue
        # At alpha = 0, the pure noise of a flow, h is infinite. With eta > 0 the noise then replaces the latent
        # entirely; eta = 0 is a case of its own, to avoid 0 times infinity. The prediction there does not count as
        # history of the next step.
        h = lam[i + 1] - lam[i]
        decay = eta * h if eta else 0.0
        pull = -alpha[i + 1] * np.expm1(-(1 + eta) * h)
        table[:, i, LATENT] = sigma[i + 1] / sigma[i] * np.exp(-decay)
        table[:, i, X0] = pull
        table[:, i, NOISE] = sigma[i + 1] * np.sqrt(-np.expm1(-2 * decay))
        if i > 0:
            extrapolation = pull * 0.5 * h / (lam[i] - lam[i - 1])
            table[1, i, X0] += extrapolation
            table[1, i, PREVIOUS] = -extrapolation
    return table


def _ddim(schedule: Schedule, eta: float) -> npt.NDArray[np.float64]:
    alpha, sigma = schedule.alpha[:-1], schedule.sigma[:-1]
    next_alpha, next_sigma = schedule.alpha[1:], schedule.sigma[1:]
    table = np.zeros((2, len(alpha), 4))
    noise = eta * np.sqrt(next_sigma**2 - (alpha / next_alpha * next_sigma**2 / sigma) ** 2)
    table[:, :, LATENT] = np.sqrt(next_sigma**2 - noise**2) / sigma
    table[:, :, X0] = next_alpha - alpha * table[0, :, LATENT]
    table[:, :, NOISE] = noise
    return table


def step(x0: Tensor, previous: Tensor, latents: Tensor, rows: Tensor, noise: Tensor) -> Tensor:
    """Move every row by one solver step.

    Args:
        x0: [B, C, H, W] x0 predictions at this step.
        previous: [B, C, H, W] x0 predictions of the previous step; any finite numbers where the factor is 0.
        latents: [B, C, H, W] latents at this step.
        rows: [B, 4] rows of :func:`coefficients`.
        noise: [B, C, H, W] standard normal.

    Returns:
        The latents [B, C, H, W] at the next step, in the dtype of ``latents`` (float32).
    """
    # Separate products and sums, never a fused multiply-add: a row's bits must not depend on its place in the batch.
    c = rows.to(latents.dtype)[:, :, None, None, None]
    moved = c[:, LATENT] * latents
    moved += c[:, X0] * x0
    moved += c[:, PREVIOUS] * previous
    moved += c[:, NOISE] * noise
    return moved


def compare(x0: Tensor, previous: Tensor, compared: Tensor) -> Tensor:
    """Return what one step adds to the change maps [B, H, W], see :mod:`lotts_search.work.change_maps`.

    Args:
        x0, previous: [B, C, H, W] x0 predictions of this step and of the previous one.
        compared: [B], 1 or 0.
    """
    squares = (x0 - previous).square().unbind(1)
    # One channel after another: in a reduction the order of the sums may depend on the size of the batch.
    return reduce(add, squares) / len(squares) * compared[:, None, None]
