"""The low frequencies of noise: an orthonormal transform, on squares of powers of two that of Haar."""

from __future__ import annotations

import numpy as np
import pytest

from lotts_search.errors import BadInput
from lotts_search.work.frequencies import low, with_low
from lotts_search.work.noise import lineage_of, start_noise
from lotts_search.work.requests import Fresh, Low

RNG = np.random.default_rng(0)


def haar(noise: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """One level of the orthonormal Haar transform of [C, H, W]: the approximation, and three bands of details."""
    a, b, c, d = (noise[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    return (a + b + c + d) / 2, [(a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]


def test_on_squares_the_coefficients_are_those_of_the_haar_transform() -> None:
    noise = RNG.standard_normal((3, 8, 16))
    level = noise
    for shape in ((4, 8), (2, 4), (1, 2)):
        level, _ = haar(level)
        assert low(noise, shape) == pytest.approx(level, abs=1e-12)


def test_other_low_frequencies_leave_all_wavelets_as_they_were() -> None:
    noise, values = RNG.standard_normal((3, 8, 16)), RNG.standard_normal((3, 2, 4))
    found = with_low(noise, values)
    one, other = noise, found
    for _ in range(2):
        (one, kept), (other, same) = haar(one), haar(other)
        assert np.stack(same) == pytest.approx(np.stack(kept), abs=1e-12)
    assert other == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 5), (6, 7)])
def test_on_any_grid_the_transform_is_orthonormal_and_has_an_exact_inverse(size: tuple[int, int]) -> None:
    noise, values = RNG.standard_normal((2, 6, 7)), RNG.standard_normal((2, *size))
    found = with_low(noise, values)
    assert low(found, size) == pytest.approx(values, abs=1e-12)
    assert with_low(found, low(noise, size)) == pytest.approx(noise, abs=1e-12)
    # Pythagoras: what the low frequencies and the rest have adds up.
    rest = with_low(noise, np.zeros_like(values))
    assert np.sum(found**2) == pytest.approx(np.sum(rest**2) + np.sum(values**2))


def test_standard_normal_coefficients_leave_noise_standard_normal() -> None:
    """All second moments of 4,000 noises: four standard errors of a covariance are 0.063."""
    noise, values = RNG.standard_normal((4000, 1, 3, 4)), RNG.standard_normal((4000, 1, 2, 2))
    found = np.stack([with_low(*one).ravel() for one in zip(noise, values, strict=True)])
    assert np.cov(found.T) == pytest.approx(np.eye(12), abs=0.085)
    assert np.abs(found.mean(0)).max() < 0.065
    assert np.mean(found**4) == pytest.approx(3, abs=0.15)


def test_the_noise_of_a_symbol_has_its_low_and_its_bases_high_frequencies() -> None:
    values = RNG.standard_normal((4, 2, 2))
    symbol = Low(Fresh(3), (2, 2), tuple(values.ravel().tolist()))
    noise, base = (start_noise(7, one, (4, 8, 8)) for one in (symbol, Fresh(3)))
    assert low(noise, (2, 2)) == pytest.approx(values, abs=1e-5)
    assert with_low(noise, low(base, (2, 2))) == pytest.approx(base, abs=1e-5)
    other = Low(Fresh(3), (2, 2), (*symbol.values[:-1], 0.5))
    assert lineage_of(symbol)[0] == "seed 3" and lineage_of(symbol) != lineage_of(other)
    assert lineage_of(symbol)[1].startswith("low 2x2 ")


def test_grids_that_do_not_fit_are_refused() -> None:
    noise = np.zeros((4, 8, 6))
    for size in ((0, 2), (9, 2), (2, 7)):
        with pytest.raises(BadInput, match=r"1\.\.8 rows and 1\.\.6 columns"):
            low(noise, size)
    with pytest.raises(BadInput, match="4 channels must have as many, not 3"):
        with_low(noise, np.zeros((3, 2, 2)))
