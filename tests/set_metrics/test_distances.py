"""Distances of sets equal closed forms and plain loops; intervals cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from lotts_search.curves.intervals import Doubles
from lotts_search.set_metrics import distances
from lotts_search.set_metrics.distances import (
    Discrepancy,
    Kernel,
    diversity,
    frechet_distance,
    gaussian,
    mean_within,
    polynomial,
)


def normal(rng: np.random.Generator, n: int, mean: Doubles, covariance: Doubles) -> Doubles:
    """n rows whose sample mean and covariance are exactly these."""
    x = rng.normal(size=(n, len(mean)))
    x = x - x.mean(axis=0)
    x = x @ linalg.inv(linalg.cholesky(np.cov(x.T)))
    return np.asarray(x @ linalg.cholesky(covariance) + mean)


def test_frechet_distance_is_that_of_the_gaussians() -> None:
    rng = np.random.default_rng(0)
    mean_x, mean_y = np.array([0.0, 1.0, -2.0, 0.5, 0.0]), np.array([1.0, 1.0, 0.0, 0.0, 3.0])
    root = rng.normal(size=(5, 5))
    x_cov, y_cov = root @ root.T + np.eye(5), np.diag([1.0, 2.0, 3.0, 4.0, 0.1])
    x, y = normal(rng, 60, mean_x, x_cov), normal(rng, 90, mean_y, y_cov)
    expected = ((mean_x - mean_y) ** 2).sum() + np.trace(x_cov + y_cov - 2 * linalg.sqrtm(x_cov @ y_cov).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    # Diagonal covariances: |μx − μy|² + Σ(√a − √b)².
    a, b = np.array([1.0, 4.0]), np.array([9.0, 0.25])
    two = frechet_distance(normal(rng, 20, np.zeros(2), np.diag(a)), normal(rng, 30, np.ones(2), np.diag(b)))
    assert two == pytest.approx(2 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-9)


def test_frechet_distance_of_fewer_images_than_features() -> None:
    """In a subspace of three dimensions the distance is that of the three coordinates."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 3)), 2 * rng.normal(size=(9, 3)) + 1
    basis = linalg.qr(rng.normal(size=(40, 40)))[0][:3]
    assert frechet_distance(x @ basis, y @ basis) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    with pytest.raises(ValueError, match="two images on each side"):
        frechet_distance(x[:1], y)


def kid_kernel(a: Doubles, b: Doubles) -> float:
    return float((sum(u * v for u, v in zip(a, b, strict=True)) / len(a) + 1) ** 3)


def cmmd_kernel(a: Doubles, b: Doubles) -> float:
    a, b = a / np.sqrt((a**2).sum()), b / np.sqrt((b**2).sum())
    return float(1000 * np.exp(-((a - b) ** 2).sum() / (2 * 10**2)))


@pytest.mark.parametrize(("kernel", "plain"), [(polynomial, kid_kernel), (gaussian, cmmd_kernel)])
def test_kid_and_cmmd_equal_plain_loops(kernel: Kernel, plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 4)  # neither 13 nor 9 rows end with a block
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(9, 6)), rng.normal(size=(13, 6)) + 0.5

    def within(z: Doubles) -> float:
        return float(np.mean([plain(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]))

    expected = within(x) + within(y) - 2 * np.mean([plain(a, b) for a in x for b in y])
    prompts = np.array([0, 0, 1, 1, 2, 2, 2, 3, 4])
    to = Discrepancy.to(y, kernel)
    assert mean_within(y, kernel) == pytest.approx(within(y), rel=1e-12)
    assert to.of(x, prompts).mean == pytest.approx(expected, rel=1e-9)
    # The order of images is nothing, and which images share a prompt concerns the interval alone.
    order = rng.permutation(9)
    assert to.of(x[order], prompts[order]).mean == pytest.approx(expected, rel=1e-9)
    assert to.of(x, np.arange(9)).mean == pytest.approx(expected, rel=1e-9)


def test_a_discrepancy_within_one_population_is_nought_on_average() -> None:
    """The estimate has no bias, unlike a Fréchet distance, and is therefore often below 0."""
    rng = np.random.default_rng(3)
    found = np.array([Discrepancy.to(rng.normal(size=(12, 4)), polynomial).of(rng.normal(size=(8, 4)), np.arange(8)).mean for _ in range(400)])  # fmt: skip
    assert abs(found.mean()) < 3 * found.std() / 20
    assert (found < 0).mean() > 0.3


def test_intervals_cover_the_truth_and_follow_prompts() -> None:
    """Images of a prompt are alike; the truth is the discrepancy of the whole population of prompts to the reference."""
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(60, 3))
    to = Discrepancy.to(reference, polynomial)
    wide = rng.normal(size=(3000, 3)) * np.sqrt(1 + 0.3**2) + 0.7
    truth = mean_within(wide, polynomial) + to.within - 2 * polynomial(wide, reference).mean()
    hits, ratios = 0, []
    for _ in range(100):
        images = np.repeat(rng.normal(size=(40, 3)), 3, axis=0) + 0.3 * rng.normal(size=(120, 3)) + 0.7
        prompts = np.repeat(np.arange(40), 3)
        found = to.of(images, prompts)
        hits += found.low <= truth <= found.high
        alone = to.of(images, np.arange(120))
        ratios.append((found.high - found.low) / (alone.high - alone.low))
    assert 88 <= hits <= 100, hits
    assert np.mean(ratios) > 1.4, "three images of a prompt are not three prompts"


def test_few_prompts_have_no_interval() -> None:
    x = np.random.default_rng(5).normal(size=(30, 3))
    assert np.isnan(Discrepancy.to(x, polynomial).of(x, np.arange(30) % 9).low)
    assert not np.isnan(Discrepancy.to(x, polynomial).of(x, np.arange(30) % 10).low)


def test_diversity_is_the_mean_distance_of_two_images_of_a_prompt() -> None:
    x = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0], [1.0, 1.0], [7.0, 7.0], [7.0, 7.0]])
    prompts = np.array([2, 2, 2, 5, 9, 9])
    expected = [(5 + 8 + 5) / 3, 0.0]  # the one image of prompt 5 has no pair
    assert diversity(x, prompts) == pytest.approx(expected)
    order = np.array([4, 0, 3, 2, 5, 1])
    assert diversity(x[order], prompts[order]) == pytest.approx(expected)
    assert diversity(x[:1], prompts[:1]).size == 0
