"""SpectralEvolution: its generations follow the cross-entropy method, and it climbs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lotts_search import BadInput, SearchResult, search
from lotts_search.core.strategy import Strategy
from lotts_search.strategies.best_of_n import BestOfN
from lotts_search.strategies.spectral_evolution import SpectralEvolution
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.frequencies import low
from lotts_search.work.noise import start_noise
from lotts_search.work.requests import Fresh, Low, Segment


class TestSpectralEvolution(StrategyConformance):
    uses_time = True

    def strategy(self) -> Strategy:
        return SpectralEvolution(size=2)

    def impossible(self) -> list[Strategy]:
        return [SpectralEvolution(size=7)]


def run(strategy: Strategy, **arguments: Any) -> tuple[SearchResult, list[Segment]]:
    with AnalyticPool() as pool:
        result = search("red star", strategy=strategy, pool=pool, **{"nfe": 1000} | arguments)
    return result, [work for work in pool.asked if isinstance(work, Segment)]


def values(work: Segment) -> np.ndarray:
    assert isinstance(work.noise, Low)
    return np.array(work.noise.values)


def test_all_images_share_their_high_frequencies() -> None:
    _, made = run(SpectralEvolution(size=3, generations=2, start=5), seed=9)
    noises = [start_noise(9, work.noise, (1, 6, 6)) for work in made]
    base = start_noise(9, Fresh(5), (1, 6, 6))
    blocks = np.ones((1, 2, 2))
    for noise in noises:
        assert noise - np.kron(low(noise, (3, 3)) / 2, blocks) == pytest.approx(
            base - np.kron(low(base, (3, 3)) / 2, blocks), abs=1e-5
        )
    assert len({noise.tobytes() for noise in noises}) == 8


def test_a_generation_is_drawn_around_the_best_of_those_before_it() -> None:
    """The fit, computed again from the trial table; what is left after it are standard normal numbers."""
    left = []
    for seed in range(40):
        strategy = SpectralEvolution(size=3, population=8, elites=3, rate=0.5, generations=3, eta=0.0)
        result, made = run(strategy, seed=seed)
        score = {t.lineage: t.score for t in result.trials if t.kind == "sample"}
        mean, deviation = np.zeros(9), np.ones(9)
        for generation in range(3):
            if generation:
                before = sorted(made[: 8 * generation], key=lambda work: score[work.lineage], reverse=True)[:3]
                best = np.stack([values(work) for work in before])
                mean, deviation = 0.5 * mean + 0.5 * best.mean(0), 0.5 * deviation + 0.5 * best.std(0)
            left.append([(values(work) - mean) / deviation for work in made[8 * generation :][:8]])
    z = np.array(left).reshape(40, 3, 8 * 9)
    for generation in range(3):  # 2,880 numbers: four standard errors are 0.075 and 0.1
        assert abs(z[:, generation].mean()) < 0.075 and z[:, generation].var() == pytest.approx(1, abs=0.11)


def test_the_fit_beats_draws_without_it() -> None:
    def mean(strategy: Strategy) -> float:
        return float(np.mean([run(strategy, nfe=40 * 8, eta=0.0, seed=seed)[0].score for seed in range(16)]))

    assert mean(SpectralEvolution(size=6, population=8, elites=2)) > mean(BestOfN()) + 0.03


def test_wrong_settings_are_refused() -> None:
    for settings, message in (
        ({"size": 0}, "size must be 1 or more, not 0"),
        ({"population": 2, "elites": 3}, r"elites must be within 1\.\.2, not 3"),
        ({"rate": 0.0}, "rate must be above 0 and at most 1, not 0"),
    ):
        with pytest.raises(BadInput, match=message):
            SpectralEvolution(**settings)
    with pytest.raises(BadInput, match=r"size must be within 1\.\.6, not 7"):
        run(SpectralEvolution(size=7))
