"""The effects of regions: exact without noise, shrunk with it, and better than changing one region at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lotts_search.arithmetic.effects import RATIOS, design, estimate

SHAPE, COUNT = (4, 4), 4
ALONE = np.stack([np.full(SHAPE, number) for number in range(COUNT)])


def total(effects, choice):
    return sum(effects[i, j, choice[i, j]] for i in range(SHAPE[0]) for j in range(SHAPE[1]))


def experiment(rng, noise, mosaics=48, scale=0.02):
    """Return true effects, choices and scores."""
    effects = scale * rng.normal(size=(*SHAPE, COUNT))
    choices = np.concatenate([ALONE, design(COUNT, SHAPE, mosaics, rng)])
    return effects, choices, [total(effects, choice) + noise * rng.normal() for choice in choices]


def test_every_region_shows_every_child_equally_often():
    for mosaics in (48, 10, 3):
        choices = design(COUNT, SHAPE, mosaics, np.random.default_rng(0))
        counts = np.stack([(choices == number).sum(0) for number in range(COUNT)])
        assert counts.max() - counts.min() == (1 if mosaics % COUNT else 0)
        assert choices.shape == (mosaics, *SHAPE)


def test_without_noise_the_best_of_all_combinations_is_found():
    rng = np.random.default_rng(1)
    for _ in range(20):
        effects, choices, scores = experiment(rng, 0.0, mosaics=96)
        assert np.array_equal(estimate(choices, scores, COUNT).best, effects.argmax(2))


def test_the_estimates_are_those_of_a_gaussian_process_with_the_same_prior():
    """One length and one ratio leave nothing to average: the posterior mean has a closed form."""
    rng = np.random.default_rng(2)
    _, choices, scores = experiment(rng, 0.05)
    shown = np.stack([(choices == number).reshape(len(choices), -1) for number in range(COUNT)], 2).astype(float)
    x, y = shown.reshape(len(choices), -1), np.array(scores)
    places = np.array([(i, j) for i in range(4) for j in range(4)])
    alike = np.exp(-((places[:, None] - places[None]) ** 2).sum(-1) / 2)
    prior = np.kron(alike, np.eye(COUNT))
    likelihoods, means = [], []
    ones = np.ones((len(y), 1))
    for ratio in RATIOS:
        v = ratio * x @ prior @ x.T + np.eye(len(y))
        inverse = np.linalg.inv(v)
        # Restricted maximum likelihood, with the mean as a fixed effect.
        p = inverse - inverse @ ones @ np.linalg.inv(ones.T @ inverse @ ones) @ ones.T @ inverse
        noise = y @ p @ y / (len(y) - 1)
        det = np.linalg.slogdet(v)[1] + np.linalg.slogdet(ones.T @ inverse @ ones)[1] - math.log(len(y))
        likelihoods.append(-0.5 * ((len(y) - 1) * math.log(noise) + det))
        means.append(ratio * prior @ x.T @ p @ y)
    weights = np.exp(np.array(likelihoods) - max(likelihoods))
    expected = (weights / weights.sum()) @ np.array(means)
    found = estimate(choices, scores, COUNT, lengths=(1.0,))
    assert found.mean.reshape(-1) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1])
def test_it_gains_more_than_one_region_at_a_time_and_than_the_best_child(noise):
    """With the same number of scores. The share of the greatest possible gain over a random child, over 60 experiments."""
    rng = np.random.default_rng(4)
    gains = {"estimated": [], "one at a time": [], "best child": []}
    for _ in range(60):
        effects, choices, scores = experiment(rng, noise)
        best = int(np.argmax(scores[:COUNT]))
        single = np.full(SHAPE, best)
        for i, j in np.ndindex(SHAPE):
            changed = []
            for number in range(COUNT):
                choice = ALONE[best].copy()
                choice[i, j] = number
                changed.append(scores[best] if number == best else total(effects, choice) + noise * rng.normal())
            single[i, j] = int(np.argmax(changed))
        gains["estimated"].append(total(effects, estimate(choices, scores, COUNT).best))
        gains["one at a time"].append(total(effects, single))
        gains["best child"].append(total(effects, ALONE[best]))
    mean = {name: np.mean(values) for name, values in gains.items()}
    assert mean["estimated"] > 1.02 * max(mean["one at a time"], mean["best child"])


def test_where_a_childs_effects_are_alike_everywhere_it_is_no_worse_than_the_best_child():
    rng = np.random.default_rng(5)
    right = chosen = 0.0
    for _ in range(200):
        whole = 0.02 * rng.normal(size=COUNT)
        effects = np.broadcast_to(whole, (*SHAPE, COUNT))
        choices = np.concatenate([ALONE, design(COUNT, SHAPE, 48, rng)])
        scores = [total(effects, choice) + 0.2 * rng.normal() for choice in choices]
        right += np.mean(estimate(choices, scores, COUNT).best == whole.argmax())
        chosen += float(np.argmax(scores[:COUNT]) == whole.argmax())
    assert right > 0.95 * chosen > 100


def test_scores_that_are_all_equal_say_nothing():
    found = estimate(ALONE, [0.5] * COUNT, COUNT)
    assert np.isfinite(found.mean).all() and np.ptp(found.mean) < 1e-12 and found.best.max() == 0
