from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from lotts_search.backbones.discrete import DiscreteTime
from lotts_search.engine.solver import coefficients, step
from lotts_search.errors import BadInput
from lotts_search.work.model import Schedule
from lotts_search.work.noise import draw, lineage_of, start_noise
from lotts_search.work.requests import Fresh, Mix, Near, Solver
from tests.tiny import scheduler_config

CONFIGS: list[dict[str, Any]] = [
    {},
    {"timestep_spacing": "linspace", "steps_offset": 0, "prediction_type": "epsilon"},
    {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"use_karras_sigmas": True},
]


def reference(config: dict[str, Any], algorithm: str, steps: int) -> DPMSolverMultistepScheduler:
    scheduler = DPMSolverMultistepScheduler(
        **config, algorithm_type=algorithm, solver_order=2, solver_type="midpoint", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("eta", [1.0, 0.0])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
@pytest.mark.parametrize("overrides", CONFIGS)
def test_every_step_of_both_orders_equals_diffusers_in_one_batch(
    overrides: dict[str, Any], steps: int, eta: float
) -> None:
    """All steps of a schedule, each with and without history, are rows of one call."""
    config = scheduler_config(**overrides)
    schedule = DiscreteTime(config).schedule(steps)
    scheduler = reference(config, "sde-dpmsolver++" if eta else "dpmsolver++", steps)
    assert np.array_equal(schedule.timestep, scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(steps)
    rows, expected = [], []
    table = coefficients(schedule, eta)
    x0, previous, latents, noise = torch.randn(4, 2 * steps, 4, 8, 8, generator=generator)
    for i in range(steps):
        for history in (False, True):
            row = len(rows)
            rows.append(table[int(history), i])
            scheduler.set_begin_index(i)
            scheduler._step_index = None
            scheduler.lower_order_nums = int(history and i > 0)
            # The scheduler converts the network's output itself; give it the output that means x0.
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[i])
            clean, latent = x0[row : row + 1], latents[row : row + 1]
            if config["prediction_type"] == "epsilon":
                output = (latent - alpha * clean) / sigma
            else:
                output = (alpha * latent - clean) / sigma
            scheduler.model_outputs = [None, previous[row : row + 1]]
            # The conversion amplifies rounding at high noise, which is not the solver's; so hand over x0 as it is.
            scheduler.convert_model_output = lambda output, sample, clean=clean: clean
            result = scheduler.step(output, scheduler.timesteps[i], latent, variance_noise=noise[row : row + 1])
            expected.append(result.prev_sample)
    got = step(x0, previous, latents, torch.from_numpy(np.stack(rows)), noise)
    want = torch.cat(expected)
    scale = want.abs().amax(dim=(1, 2, 3))
    assert ((got - want).abs().amax(dim=(1, 2, 3)) / scale).max() < 1e-5


def ddim(overrides: dict[str, Any], steps: int) -> tuple[Schedule, DDIMScheduler]:
    """The schedule, and diffusers' DDIM with steps from each of its timesteps to the next, whatever their spacing."""
    config = scheduler_config(**overrides)
    scheduler = DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=True)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if config.get("rescale_betas_zero_snr"):
        scheduler.alphas_cumprod[-1] = 2**-24  # what the multistep solvers of diffusers make of zero
    return DiscreteTime(config).schedule(steps), scheduler


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("overrides", [{}, *CONFIGS[1:3]])
def test_every_step_of_ddim_equals_diffusers_in_one_batch(overrides: dict[str, Any], steps: int, eta: float) -> None:
    """From the network's output, ε or v, to the next latent; with or without history it is the same."""
    schedule, scheduler = ddim(overrides, steps)
    table = coefficients(schedule, eta, "ddim")
    assert np.array_equal(table[0], table[1])
    output, latents, noise = torch.randn(3, steps, 4, 8, 8, generator=torch.Generator().manual_seed(steps))
    alpha, sigma = (torch.from_numpy(s[:-1]).float().view(-1, 1, 1, 1) for s in (schedule.alpha, schedule.sigma))
    if scheduler.config["prediction_type"] == "epsilon":
        x0 = (latents - sigma * output) / alpha
    else:
        x0 = alpha * latents - sigma * output
    expected = []
    for i, timestep in enumerate(schedule.timestep.astype(int).tolist()):
        after = int(schedule.timestep[i + 1]) if i + 1 < steps else -1
        # So many steps that the next timestep is ours.
        scheduler.num_inference_steps = Fraction(1000, timestep - after)
        given = [tensor[i : i + 1].double() for tensor in (output, latents, noise)]
        expected.append(scheduler.step(given[0], timestep, given[1], eta=eta, variance_noise=given[2]).prev_sample)
    got = step(x0, torch.zeros_like(x0), latents, torch.from_numpy(table[0]), noise)
    want = torch.cat(expected)
    assert ((got - want).abs().amax(dim=(1, 2, 3)) / want.abs().amax(dim=(1, 2, 3))).max() < 1e-5


def test_ddim_steps_of_diffusers_own_trailing_schedule() -> None:
    """With trailing spacing diffusers lays the same timesteps for both solvers: a whole trajectory is the same."""
    schedule, scheduler = ddim({"timestep_spacing": "trailing"}, 20)
    scheduler.set_timesteps(20)
    assert np.array_equal(schedule.timestep, scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(0)
    ours = theirs = torch.randn(1, 4, 8, 8, generator=generator)
    for i, timestep in enumerate(scheduler.timesteps):
        noise = torch.randn(1, 4, 8, 8, generator=generator)
        theirs = scheduler.step(theirs.sin(), timestep, theirs, eta=1.0, variance_noise=noise).prev_sample.float()
        x0 = float(schedule.alpha[i]) * ours - float(schedule.sigma[i]) * ours.sin()
        row = torch.from_numpy(coefficients(schedule, 1.0, "ddim")[0, i : i + 1])
        ours = step(x0, x0, ours, row, noise)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_ddim_without_noise_is_euler_on_a_flow() -> None:
    """``x + (σ' − σ)·v`` with v = ε − x0, from pure noise (α = 0) on; the last step is the prediction itself."""
    sigma = np.array([1.0, 0.9, 0.6, 0.2, 0.0])
    schedule = Schedule(1 - sigma, sigma, 1000 * sigma[:-1])
    x0, latents, noise = torch.randn(3, 4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    at, after = (torch.from_numpy(s).float().view(-1, 1, 1, 1) for s in (sigma[:-1], sigma[1:]))
    velocity = (latents - x0) / at
    got = step(x0, x0, latents, torch.from_numpy(coefficients(schedule, 0.0, "ddim")[0]), noise)
    assert torch.allclose(got, latents + (after - at) * velocity, atol=1e-6)
    assert torch.equal(got[-1], x0[-1])
    noisy = coefficients(schedule, 1.0, "ddim")
    assert np.isfinite(noisy).all() and noisy[0, 0].tolist() == pytest.approx([0, 0.1, 0, 0.9])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_and_the_first_order_of_the_other_solver_agree_at_both_ends_alone(eta: float) -> None:
    schedule = DiscreteTime(scheduler_config()).schedule(25)
    assert np.allclose(coefficients(schedule, eta, "ddim")[0], coefficients(schedule, eta)[0], atol=1e-9)
    assert not np.allclose(coefficients(schedule, 0.5, "ddim")[0], coefficients(schedule, 0.5)[0], atol=1e-3)


def test_last_step_returns_the_prediction_itself() -> None:
    schedule = DiscreteTime(scheduler_config()).schedule(10)
    x0, previous, latents, noise = torch.randn(4, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    row = torch.from_numpy(coefficients(schedule, 1.0)[1, -1:])
    assert torch.equal(step(x0, previous, latents, row, noise), x0)


@pytest.mark.parametrize(
    ("eta", "solver"), [(0.0, "dpm"), (0.3, "dpm"), (1.0, "dpm"), (1.7, "dpm"), (0.3, "ddim"), (1.0, "ddim")]
)
def test_any_eta_keeps_the_marginal_when_the_prediction_is_exact(eta: float, solver: Solver) -> None:
    """With x0 known, x_i = a·x0 + s·ε must go to mean a'·x0 and variance s'², whatever the noise amount."""
    schedule = DiscreteTime(scheduler_config()).schedule(25)
    for row in range(24):
        latent, pull, past, noise = coefficients(schedule, eta, solver)[0, row]
        alpha, sigma = schedule.alpha[row : row + 2], schedule.sigma[row : row + 2]
        assert past == 0
        assert latent * alpha[0] + pull == pytest.approx(alpha[1], rel=1e-10)
        assert (latent * sigma[0]) ** 2 + noise**2 == pytest.approx(sigma[1] ** 2, rel=1e-10)


def test_second_order_is_exact_for_predictions_linear_in_lambda_to_second_order() -> None:
    """The extrapolation weights of the two predictions sum to the first-order weight."""
    schedule = DiscreteTime(scheduler_config()).schedule(25)
    first, second = coefficients(schedule, 1.0)
    assert np.allclose(second[1:, 1] + second[1:, 2], first[1:, 1], rtol=1e-12)
    lam = np.log(schedule.alpha[:-1] / schedule.sigma[:-1])
    i = 12
    # D(λ) = λ: the midpoint rule uses D half a step ahead.
    ahead = lam[i] + (lam[i + 1] - lam[i]) / 2
    assert second[i, 1] * lam[i] + second[i, 2] * lam[i - 1] == pytest.approx(first[i, 1] * ahead, rel=1e-10)


def test_noise_amounts_that_a_solver_does_not_have_are_refused() -> None:
    schedule = DiscreteTime(scheduler_config()).schedule(5)
    for eta, solver in ((-0.1, "dpm"), (float("nan"), "dpm"), (1.2, "ddim"), (-1.0, "ddim")):
        with pytest.raises(BadInput, match=f"eta .*{eta}"):
            coefficients(schedule, eta, solver)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, -3, 1000, 5000])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(BadInput, match="number of steps"):
        DiscreteTime(scheduler_config()).schedule(steps)


def test_train_levels_are_those_of_the_noise_schedule() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    clean = torch.cumprod(1 - betas, 0)
    alpha, sigma = DiscreteTime(scheduler_config()).train_level(400)
    assert (alpha, sigma) == pytest.approx((float(clean[400].sqrt()), float((1 - clean[400]).sqrt())), rel=1e-4)


def test_noise_depends_on_every_argument_and_on_nothing_else() -> None:
    base = (7, ("seed 3", "refine@8 1"), "step", 4, (4, 8, 8))
    others = [
        (8, *base[1:]),
        (7, ("seed 3",), *base[2:]),
        (7, ("seed 3refine@8 1",), *base[2:]),
        (7, ("refine@8 1", "seed 3"), *base[2:]),
        (7, base[1], "inside", 4, (4, 8, 8)),
        (7, base[1], "step", 5, (4, 8, 8)),
    ]
    np.random.seed(0)
    first = draw(*base)  # type: ignore[arg-type]
    np.random.seed(1)
    assert np.array_equal(first, draw(*base))  # type: ignore[arg-type]
    for other in others:
        correlation = np.corrcoef(first.ravel(), draw(*other).ravel())[0, 1]  # type: ignore[arg-type]
        assert abs(correlation) < 0.25
    many = draw(0, (), "step", 0, (100_000,))
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01
    assert many.dtype == np.float32


def test_noise_is_the_same_on_every_machine() -> None:
    """Frozen numbers: recorded searches can be replayed only while these stay."""
    assert draw(1, ("seed 3",), "step", 2, (3,)).tolist() == pytest.approx(FROZEN, abs=1e-6)


FROZEN = [0.2831631600856781, 0.32871419191360474, -0.16886171698570251]


def test_start_noises() -> None:
    shape = (4, 16, 16)
    base = start_noise(5, Fresh(1), shape).astype(np.float64)
    assert np.array_equal(base.astype(np.float32), draw(5, ("seed 1",), "start", 0, shape))
    near = start_noise(5, Near(Fresh(1), 0.95, 2), shape).astype(np.float64)
    assert np.linalg.norm(near) == pytest.approx(np.linalg.norm(base), rel=1e-5)
    assert (near * base).sum() / np.linalg.norm(near) / np.linalg.norm(base) == pytest.approx(0.95, abs=1e-5)
    mixed = start_noise(5, Mix(Fresh(1), 0.6, 2), shape).astype(np.float64)
    fresh = (mixed - 0.8 * base) / 0.6
    assert fresh.std() == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(fresh.ravel(), base.ravel())[0, 1]) < 0.1
    assert not np.allclose(near, start_noise(5, Near(Fresh(1), 0.95, 3), shape))
    assert lineage_of(Mix(Near(Fresh(1), 0.95, 2), 0.6, 4)) == ("seed 1", "near 0.95 2", "mix 0.6 4")
    for wrong in (Near(Fresh(1), 1.5, 0), Mix(Fresh(1), -0.1, 0)):
        with pytest.raises(BadInput):
            start_noise(0, wrong, shape)
