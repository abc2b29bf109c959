"""Weights and resampling of steered particles, on a process whose law is known exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import brentq

from lotts_search.arithmetic.smc import SCHEMES, Weights, checkpoints, effective, spread, temperature, twins
from lotts_search.engine.solver import LATENT, NOISE, PREVIOUS, X0, coefficients
from lotts_search.testing.gaussian import Gaussian
from lotts_search.testing.mixture import schedule

POTENTIALS = ("diff", "max", "add", "rt")
COMBINATIONS = list(itertools.product(POTENTIALS, SCHEMES))
STEPS, STOPS = 8, (2, 4, 6)
MODEL = Gaussian(slope=0.9, curve=-0.3)


def steered(count, seed, potential, scheme, *, below=None, strength=1.0, temper=0.0, model=MODEL, eta=1.0):
    """Steer particles of the model, all at once. Returns the final numbers and the weights."""
    rng = np.random.default_rng(seed)
    times, table = schedule(STEPS), coefficients(schedule(STEPS), eta)
    weights = Weights(count, potential, strength, temper)
    x, before = rng.standard_normal(count), np.zeros(count)
    for i in range(STEPS):
        x0 = model.predict(x, times.alpha[i], times.sigma[i]).astype(np.float64)
        if i in STOPS:
            weights.weigh(reward(model, x0), i / STEPS)
            chosen = weights.resample(rng, scheme, below)
            x, before, x0 = x[chosen], before[chosen], x0[chosen]
        c = table[int(i > 0), i]
        x = c[LATENT] * x + c[X0] * x0 + c[PREVIOUS] * before + c[NOISE] * rng.standard_normal(count)
        before = x0
    weights.finish(reward(model, x))
    return x, weights


def reward(model, x):
    return model.slope * x + model.curve * x**2 + model.offset


def estimates(x, weights):
    mean = weights.normalised @ x
    return np.array([mean, weights.normalised @ (x - mean) ** 2, np.exp(weights.evidence)])


def exact(model=MODEL, strength=1.0, eta=1.0):
    mean, variance, log = model.tilted(*model.law(STEPS, eta=eta), strength)
    return np.array([mean, variance, np.exp(log)])


@pytest.mark.parametrize(("potential", "scheme"), COMBINATIONS)
@pytest.mark.parametrize(("below", "temper"), [(None, 0.0), (0.5, 0.0), (0.9, 0.01)])
def test_estimates_agree_with_the_exact_law(potential, scheme, below, temper):
    """Tilted mean, variance and evidence, each time within five standard errors of 40 runs."""
    runs = [steered(4000, seed, potential, scheme, below=below, temper=temper) for seed in range(40)]
    found = np.array([estimates(*run) for run in runs])
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - exact()) < 5 * error).all()
    assert (error < 0.01).all()


@pytest.mark.parametrize(("potential", "scheme"), COMBINATIONS)
def test_the_error_falls_as_one_over_the_root_of_the_particles(potential, scheme):
    sizes = np.array([64, 512, 4096])
    errors = []
    for size in sizes:
        found = np.array([estimates(*steered(size, seed, potential, scheme)) for seed in range(120)])
        errors.append(np.sqrt(np.mean(((found - exact()) / exact()) ** 2)))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.08)


def test_another_amount_of_noise_has_its_own_law():
    found = np.array([estimates(*steered(4000, seed, "diff", "systematic", eta=0.5)) for seed in range(40)])
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - exact(eta=0.5)) < 5 * error).all()


@pytest.mark.parametrize("temper", [0.0, 0.01])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_all_potentials_of_a_trajectory_multiply_to_the_exponential_of_its_score(potential, temper):
    """Where no resampling comes between them, however good it looked on the way."""
    scores = 3 * np.random.default_rng(0).standard_normal((5, 7)) - 4
    weights = Weights(7, potential, 10.0, temper)
    for at, row in enumerate(scores[:-1]):
        weights.weigh(row, at / 5)
        assert np.array_equal(weights.resample(np.random.default_rng(0), below=0.0), np.arange(7))
    weights.finish(scores[-1])
    assert weights.log == pytest.approx(10 * scores[-1], abs=1e-9)
    expected = np.exp(10 * (scores[-1] - scores[-1].max()))
    assert weights.normalised == pytest.approx(expected / expected.sum(), abs=1e-12)


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize(("potential", "scheme"), COMBINATIONS)
def test_a_constant_in_all_scores_changes_nothing_but_the_evidence(potential, scheme, offset):
    moved = Gaussian(slope=0.9, curve=-0.3, offset=offset)
    for below in (None, 0.5):
        x, weights = steered(300, 3, potential, scheme, below=below, strength=3.0, temper=0.01)
        y, other = steered(300, 3, potential, scheme, below=below, strength=3.0, temper=0.01, model=moved)
        assert np.array_equal(x, y)
        assert other.normalised == pytest.approx(weights.normalised, rel=1e-6)
        assert other.evidence - 3 * offset == pytest.approx(weights.evidence, abs=1e-4)


def test_the_greatest_score_so_far_may_be_negative():
    weights = Weights(2, "max", 1.0)
    weights.weigh([-5.0, -7.0], 0.2)
    assert weights.log.tolist() == [-5, -7]
    weights.weigh([-9.0, -6.0], 0.4)
    assert weights.log.tolist() == [-5 - 5, -7 - 6]


def test_a_skipped_resampling_carries_the_weights_into_the_next():
    rng = np.random.default_rng(1)
    weights = Weights(4, "rt", 1.0)
    weights.weigh([0.0, 0.1, 0.2, 0.3], 0.2)
    assert weights.resample(rng, below=0.5).tolist() == [0, 1, 2, 3]
    assert weights.log.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    weights.weigh([0.0, 0.0, 0.0, 9.0], 0.4)
    expected = np.log(np.mean(np.exp([0.0, 0.1, 0.2, 9.3])))
    assert weights.resample(rng, below=0.5).tolist() == [3, 3, 3, 3]
    assert weights.log.tolist() == [0, 0, 0, 0] and weights.evidence == pytest.approx(expected)
    # Each of the four has the whole product of its ancestor behind it, which the last potential takes back.
    weights.finish([1.0, 1.0, 2.0, 2.0])
    assert weights.log == pytest.approx(np.array([1.0, 1.0, 2.0, 2.0]) - 9.3)


def test_particles_that_fail_leave_the_others_as_they_are():
    weights = Weights(3, "add", 2.0)
    weights.weigh([1.0, 2.0, 3.0], 0.5)
    weights.keep([0, 2])
    weights.weigh([1.0, 1.0], 0.75)
    assert weights.log.tolist() == [2 + 4, 6 + 8]


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"fleming-viot"}))
def test_resampling_is_unbiased_and_ordered(scheme):
    rng = np.random.default_rng(0)
    weights = np.array([0.02, 0.3, 0.0, 0.18, 0.5])
    counts = np.array([np.bincount(SCHEMES[scheme](weights, rng, 5), minlength=5) for _ in range(4000)])
    assert (counts.sum(axis=1) == 5).all() and (counts[:, 2] == 0).all()
    error = counts.std(axis=0, ddof=1) / np.sqrt(len(counts)) + 1e-12
    assert (np.abs(counts.mean(axis=0) - 5 * weights) <= 5 * error + 1e-9).all()
    if scheme != "multinomial":
        assert (counts >= np.floor(5 * weights)).all()
    if scheme == "systematic":
        assert (counts <= np.ceil(5 * weights)).all()
    chosen = SCHEMES[scheme](weights, rng, 5)
    assert (np.diff(chosen) >= 0).all()
    assert SCHEMES[scheme](np.array([0.0, 1.0, 0.0]), rng, 3).tolist() == [1, 1, 1]
    if scheme != "multinomial":
        assert SCHEMES[scheme](np.full(7, 1 / 7), rng, 7).tolist() == list(range(7))


def test_fleming_viot_replaces_single_particles_and_is_unbiased_for_many():
    resample, rng = SCHEMES["fleming-viot"], np.random.default_rng(0)
    weights = np.tile([0.1, 0.2, 0.3, 0.4], 2000) / 2000
    share = np.bincount(resample(weights, rng, 8000) % 4, minlength=4) / 8000
    assert share == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)
    assert resample(np.full(7, 1 / 7), rng, 7).tolist() == list(range(7))
    assert resample(np.array([0.0, 1.0, 0.0]), rng, 3).tolist() == [1, 1, 1]
    alive = [np.isin([0, 3], resample(np.array([0.1, 0.2, 0.3, 0.4]), rng, 4)) for _ in range(4000)]
    first, best = np.mean(alive, axis=0)
    assert best == 1 and first == pytest.approx(0.1 / 0.4, abs=0.03)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"fleming-viot"}))
def test_fewer_particles_are_drawn_without_bias(scheme):
    rng, weights = np.random.default_rng(0), np.array([0.05, 0.35, 0.1, 0.5])
    counts = np.array([np.bincount(SCHEMES[scheme](weights, rng, 2), minlength=4) for _ in range(6000)])
    assert (counts.sum(axis=1) == 2).all()
    assert counts.mean(axis=0) == pytest.approx(2 * weights, abs=0.03)
    funnel = Weights(4, "rt", 1.0)
    funnel.weigh(np.log(weights), 0.5)
    chosen = funnel.resample(rng, scheme, below=0.0, fewer=2)
    assert len(chosen) == len(funnel.log) == 2 and funnel.log.tolist() == [0, 0]
    assert funnel.evidence == pytest.approx(np.log(0.25))


def test_lineages_are_the_first_particles_with_descendants():
    weights = Weights(5)
    assert weights.lineages == 5
    weights.keep([0, 0, 2, 3, 3])
    assert weights.lineages == 3
    weights.keep([0, 1, 2])  # two children of one, and one of another
    assert weights.lineages == 2


def test_checkpoints_are_the_same_shares_of_any_trajectory():
    assert checkpoints(0, 100, 0.2, 0.2, 0.8) == [20, 40, 60, 80]
    assert checkpoints(0, 50, 0.2, 0.2, 0.8) == [10, 20, 30, 40]
    assert checkpoints(0, 10, 0.2, 0.2, 0.8) == [2, 4, 6, 8]
    assert checkpoints(25, 50, 0.2, 0.2, 0.8) == [30, 35, 40, 45]
    assert checkpoints(0, 50, 0.1, 0.1, 0.9) == [5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert checkpoints(0, 8, 0.2, 0.2, 0.8) == [2, 3, 5, 6]
    assert checkpoints(0, 10, 0.01, 0.0, 1.0) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert checkpoints(0, 4, 0.2, 0.2, 0.8) == [1, 2]
    assert checkpoints(6, 8, 0.2, 0.2, 0.8) == checkpoints(0, 1, 0.2, 0.0, 1.0) == []


def test_the_spread_is_the_standard_deviation_of_normal_scores_for_any_number_of_them():
    rng = np.random.default_rng(0)
    for count in (2, 4, 9):
        scores = 3 * rng.standard_normal((20000, count)) - 7
        assert np.mean([spread(row) for row in scores]) == pytest.approx(3, rel=0.02)
        pairs = np.abs(scores[0][:, None] - scores[0])[~np.eye(count, dtype=bool)]
        assert spread(scores[0]) == pytest.approx(np.sqrt(np.pi) / 2 * pairs.mean())
    assert spread([]) == spread([4.0]) == spread([2.0, 2.0, 2.0]) == 0 < spread([2.0, 2.0, 2.0, 2.5])


def test_a_relative_strength_is_per_spread_of_the_first_scores():
    first, second = [0.1, 0.4, 0.2, 0.9], [5.0, -3.0, 2.0, 2.5]
    relative, absolute = Weights(4, "add", 2.0, relative=True), Weights(4, "add", 2.0 / spread(first))
    for weights in (relative, absolute):
        weights.weigh(first, 0.2)
        weights.weigh(second, 0.4)
        weights.finish(second)
    assert relative.log == pytest.approx(absolute.log) and np.ptp(relative.log) > 5
    same = Weights(3, "max", 2.0, relative=True)
    same.weigh([0.5, 0.5, 0.5], 0.2)
    same.weigh([0.1, 0.2, 0.9], 0.4)
    assert same.log.tolist() == [0, 0, 0]


def test_numbers_of_children_of_one_particle():
    assert twins([4, 7, 7, 7, 9]) == [0, 0, 1, 2, 0]


def test_tempering_grows_to_one():
    taus = [temperature(share, 0.008) for share in np.linspace(0, 1, 11)]
    assert taus[0] == 0 and taus[-1] == 1 and (np.diff(taus) >= 0).all()
    assert temperature(0.5, 0.008) == pytest.approx(1.008**50 - 1)
    assert temperature(0.3, 0.0) == 1


@pytest.mark.parametrize("potential", ["diff", "max", "add", "rt"])
def test_an_adaptive_temperature_is_the_greatest_that_leaves_enough_particles(potential):
    """Compared with a root of the effective sample size that scipy finds."""
    r = np.random.default_rng(0).normal(size=32)
    for share in (0.3, 0.5, 0.9):
        weights = Weights(32, potential, strength=10.0)
        weights.weigh(r, 0.5, share)
        found = brentq(lambda strength, share=share: effective(strength * r) - 32 * share, 1e-6, 10.0)
        fitted = np.polyfit(r, weights.log, 1)[0]
        assert found * 0.97 < fitted <= found and 32 * share <= weights.ess < 32 * share + 0.5
    gentle, plain = Weights(32, potential, strength=0.1), Weights(32, potential, strength=0.1)
    gentle.weigh(r, 0.5, 0.5)
    plain.weigh(r, 0.5)
    assert np.array_equal(gentle.log, plain.log), "λ is lowered only where it must be"


@pytest.mark.parametrize("potential", ["diff", "max", "add", "rt"])
def test_temperatures_change_with_the_checkpoints_and_not_the_product(potential):
    rng = np.random.default_rng(1)
    weights, last = Weights(16, potential, strength=5.0), rng.normal(size=16)
    for at in (0.2, 0.5, 0.8):
        weights.weigh(rng.normal(size=16), at, 0.5)
    weights.finish(last)
    assert weights.log == pytest.approx(5.0 * last)


def test_where_no_temperature_leaves_enough_particles_the_best_is_taken():
    weights = Weights(8, "rt", strength=5.0)
    weights.log = np.array([9.0, *np.zeros(7)])
    weights.weigh([-1.0, *np.zeros(7)], 0.5, 1.0)
    sizes = [effective(np.array([9.0 - s, *np.zeros(7)])) for s in np.linspace(0, 5, 1000)]
    assert weights.ess == pytest.approx(max(sizes))
