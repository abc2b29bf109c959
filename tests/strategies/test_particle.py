"""Particle on a process whose law is known exactly, and what it does with candidates."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from lotts_search import BadInput, search
from lotts_search.arithmetic.smc import SCHEMES
from lotts_search.errors import Failure
from lotts_search.strategies.particle import Particle
from lotts_search.testing import AnalyticPool, seconds_as_requests
from lotts_search.testing.gaussian import Gaussian
from lotts_search.work.requests import Predict, Segment
from tests.scripted import Scripted

POTENTIALS = ("diff", "max", "add", "rt")
STEPS = 5
MODEL = Gaussian(slope=0.9, curve=-0.3)


def steered(count, seed=0, model=MODEL, fail=lambda work: None, **settings):
    """Steer particles of the Gaussian model: the final numbers, their weights, and the search."""
    particle = Particle(**{"strength": 1.0, "interval": 0.4, "unit": "score", "first": 0.1, "last": 0.9} | settings)
    found = []

    async def script(handle):
        stages = particle._stages(handle.costs, "sample")
        found.append(await particle.steer(handle, lambda s, stop: handle.sample(s, stop=stop), stages, count))

    with AnalyticPool(model.info(STEPS), model=model, fail=fail) as pool:
        result = search("x", strategy=Scripted(script), pool=pool, nfe=count * STEPS, seed=seed)
    ((particles, weights),) = found
    return np.array([number(result, one, model) for one in particles]), weights, result


def number(result, candidate, model=MODEL):
    return float(model.latent(result.images[candidate.key])[0, 0, 0])


def estimates(x, weights, _=None):
    mean = weights.normalised @ x
    return np.array([mean, weights.normalised @ (x - mean) ** 2, np.exp(weights.evidence)])


def exact(model=MODEL, strength=1.0):
    mean, variance, log = model.tilted(*model.law(STEPS), strength)
    return np.array([mean, variance, np.exp(log)])


@pytest.mark.parametrize(("potential", "scheme"), list(itertools.product(POTENTIALS, SCHEMES)))
def test_weighted_mean_variance_and_evidence_agree_with_the_exact_law(potential, scheme):
    """Within four standard errors of eight searches, with every other one resampling only where it must."""
    settings = {"potential": potential, "resampling": scheme}
    found = [estimates(*steered(64, seed, adaptive=bool(seed % 2), **settings)) for seed in range(8)]
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - exact()) < 4 * error + 0.01).all()
    assert (error < 0.08).all()


def test_the_error_falls_as_one_over_the_root_of_the_particles():
    errors = []
    for count, searches in ((12, 40), (192, 10)):
        found = [estimates(*steered(count, seed, potential="diff")) for seed in range(searches)]
        errors.append(np.sqrt(np.mean(((np.array(found) - exact()) / exact()) ** 2)))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.45)


def test_sampling_follows_the_law_of_the_discretised_process():
    x, weights, _ = steered(700, strength=0.0)
    mean, variance = MODEL.law(STEPS)
    assert weights.ess == pytest.approx(700) and weights.evidence == pytest.approx(0)
    assert x.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / 700))
    assert x.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / 700))


@pytest.mark.parametrize("potential", POTENTIALS)
def test_weights_are_the_products_of_the_potentials_along_each_ancestry(potential):
    """Computed again from the trial table, with plain exponentials, where no resampling came in between."""
    x, weights, result = steered(6, strength=2.0, potential=potential, adaptive=True, first=0.0, interval=0.01)
    resampled = any("branch" in seed for trial in result.trials for seed in trial.lineage)
    assert not resampled, "choose a weaker strength"
    expected = np.exp(2 * (MODEL.slope * x + MODEL.curve * x**2))
    assert weights.normalised == pytest.approx(expected / expected.sum(), rel=1e-9)
    assert np.exp(weights.evidence) == pytest.approx(expected.mean(), rel=1e-9)


def test_an_adaptive_temperature_keeps_the_law():
    """It changes who survives at checkpoints, and what the particles stand for in the end not: within four standard errors."""
    found = [estimates(*steered(64, seed, strength=2.0, ess=0.5)) for seed in range(8)]
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - exact(strength=2.0)) < 4 * error + 0.02).all()


def test_an_adaptive_temperature_keeps_more_lineages():
    def lineages(**settings):
        return np.mean([steered(32, seed, strength=20.0, **settings)[1].lineages for seed in range(6)])

    assert lineages(ess=0.75) > 1.5 * lineages()


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_a_constant_in_all_rewards_changes_no_choice(potential, offset):
    settings = {"potential": potential, "strength": 10.0, "adaptive": False, "temper": 0.01}
    x, weights, result = steered(8, **settings)
    y, others, other = steered(8, model=Gaussian(slope=0.9, curve=-0.3, offset=offset), **settings)
    assert np.array_equal(x, y) and others.normalised == pytest.approx(weights.normalised, rel=1e-5)
    assert [trial.lineage for trial in other.trials] == [trial.lineage for trial in result.trials]
    assert [trial.trial_id for trial in other.trials] == [trial.trial_id for trial in result.trials]
    assert len({trial.lineage for trial in result.trials if "branch" in trial.lineage[-1]}) > 0


@pytest.mark.parametrize("potential", POTENTIALS)
def test_by_default_the_unit_of_the_scores_changes_nothing(potential):
    """λ is measured in spreads of the scores; in units of the scores a thousandth of λ is another search."""
    settings = {"potential": potential, "strength": 2.0, "adaptive": False, "temper": 0.01}
    thousandth = Gaussian(slope=0.0009, curve=-0.0003, offset=5.0)
    for unit, same in (("spread", True), ("score", False)):
        (x, weights, _), (y, others, _) = (steered(16, unit=unit, model=m, **settings) for m in (MODEL, thousandth))
        assert np.array_equal(x, y) is same
        assert np.allclose(others.normalised, weights.normalised, rtol=1e-3) is same


def test_particles_of_equal_scores_are_not_selected():
    x, weights, result = steered(8, unit="spread", adaptive=False, model=Gaussian(slope=0.0, curve=0.0, offset=0.3))
    assert weights.ess == pytest.approx(8) and len(np.unique(x)) == 8
    assert not any("branch" in seed for trial in result.trials for seed in trial.lineage)


@pytest.mark.parametrize("potential", POTENTIALS)
def test_one_particle_is_a_plain_sample(potential):
    with AnalyticPool() as pool:
        plain = search("red star", strategy="resampling", pool=pool, nfe=8)
        one = search(
            "red star", strategy=Particle(interval=0.01, potential=potential, adaptive=False), pool=pool, nfe=8
        )
    assert np.array_equal(one.image, plain.image) and one.ledger.nfe == plain.ledger.nfe


def test_one_particle_in_the_mask_is_a_plain_refinement():
    async def plain(search):
        parent = await search.sample(0)
        await search.refine(parent, await search.localize(parent), seed=0)

    with AnalyticPool() as pool:
        refined = search("red star", strategy=Scripted(plain), pool=pool, nfe=14)
        steered = search("red star", strategy=Particle(local=True, interval=0.01, adaptive=False), pool=pool, nfe=14)
    assert steered.ledger.nfe == refined.ledger.nfe == 14
    (expected,) = [refined.images[t.trial_id] for t in refined.trials if t.kind == "refine"]
    (found,) = [steered.images[t.trial_id] for t in steered.trials if t.kind == "advance" and t.stop == 8]
    assert np.array_equal(found, expected)


def test_particles_in_the_mask_leave_the_background_alone():
    """Until the last unmasked steps; here none are."""
    with AnalyticPool() as pool:
        result = search(
            "red star", strategy=Particle(local=True, interval=0.01, adaptive=False, holistic=False), pool=pool, nfe=60
        )
    (located,) = result.located.values()
    parent = result.images[result.trials[0].trial_id]
    ends = [t for t in result.trials if t.stop == 8 and t.kind == "advance"]
    assert len(ends) == 10 and all(t.mask_ratio == 0.5 for t in ends)
    for trial in ends:
        different = (result.images[trial.trial_id] != parent).any(axis=-1)
        assert not (different & ~located.mask).any() and different.any()
    best = next(t for t in result.trials if t.trial_id == result.best_refined.trial_id)
    assert best in ends


def test_predictions_are_made_once_and_shared_by_all_children():
    with AnalyticPool() as pool:
        strategy = Particle(particles=8, interval=0.25, first=0.1, last=0.9, adaptive=False)
        result = search("red star", strategy=strategy, pool=pool, nfe=64)
    children = [t for t in result.trials if t.kind == "advance"]
    parents = Counter(t.parent_id for t in children)
    assert max(parents.values()) > 1, "no particle has several children"
    looked = [w for w in pool.asked if isinstance(w, Predict)]
    assert len(looked) == 8 * 3 and result.ledger.nfe == 64
    went_on = [w for w in pool.asked if isinstance(w, Segment) and w.state is not None]
    assert len(went_on) == len(children) and all(w.state.predicted is not None for w in went_on)
    assert {(t.start, t.stop, t.nfe) for t in children} == {(1, 3, 1.0), (3, 5, 1.0), (5, 8, 2.0)}


def test_a_particle_that_fails_is_left_out():
    asked = []

    def fail(work):
        if isinstance(work, Predict) and work.state.step == 2:
            asked.append(work)
            return Failure("lost") if len(asked) == 2 else None
        return None

    x, weights, result = steered(6, fail=fail, adaptive=False)
    assert len(x) == len(weights.log) == 5
    assert sum(t.status == "failed" for t in result.trials) == 1


def test_a_given_image_is_steered_inside_its_mask():
    with AnalyticPool() as pool:
        given = search("red star", strategy="resampling", pool=pool, nfe=8, seed=4)
        result = search("red star", strategy="particle", pool=pool, nfe=21, image=given.image)
    assert Counter(t.kind for t in result.trials if t.stop == 8) == {"encode": 1, "advance": 4}


def test_a_budget_of_time_is_used_in_rounds():
    with AnalyticPool() as pool, seconds_as_requests(pool):
        result = search("red star", strategy=Particle(), pool=pool, seconds=100)
    made = [t.lineage[0] for t in result.trials if t.kind == "sample"]
    assert result.status == "seconds" and len(set(made)) == len(made) >= 8


@pytest.mark.parametrize(
    "settings",
    [
        {"interval": 0},
        {"interval": 1},
        {"interval": 5},
        {"particles": 0},
        {"first": 0.9, "last": 0.1},
        {"last": 1.5},
        {"temper": -1.0},
        {"ess": 1.5},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(BadInput, match="must be"):
        Particle(**settings)


def test_a_solver_without_noise_is_refused_before_any_work():
    with AnalyticPool() as pool:
        for strategy in ("particle", "beam-in-mask", "svdd", "tree-search", "rollover-budget"):
            with pytest.raises(BadInput, match="eta must be above 0"):
                search("red star", strategy=strategy, pool=pool, nfe=100, eta=0.0)
    assert pool.asked == []
