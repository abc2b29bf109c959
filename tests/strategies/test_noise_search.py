"""Random search, zero-order search, evolutionary search and search over paths."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lotts_search import BadInput, SearchResult, search
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import Budget, Plan, Strategy
from lotts_search.strategies.evolutionary import Evolutionary
from lotts_search.strategies.random_search import RandomSearch
from lotts_search.strategies.search_over_paths import SearchOverPaths
from lotts_search.strategies.zero_order import ZeroOrder
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.noise import start_noise
from lotts_search.work.requests import Fresh, Mix, Near, Noise, Segment

# On the analytic model a sample costs 8 NFE and paths from steps 3, 4 and 6 cost 5, 4 and 2.


class TestRandomSearch(StrategyConformance):
    def strategy(self) -> Strategy:
        return RandomSearch()


class TestZeroOrder(StrategyConformance):
    def strategy(self) -> Strategy:
        return ZeroOrder()


class TestEvolutionary(StrategyConformance):
    def strategy(self) -> Strategy:
        return Evolutionary()


class TestSearchOverPaths(StrategyConformance):
    def strategy(self) -> Strategy:
        return SearchOverPaths()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.refine(6)


def run(strategy: Strategy, **arguments) -> tuple[SearchResult, list[Segment]]:
    with AnalyticPool() as pool:
        result = search("red star", strategy=strategy, pool=pool, **{"nfe": 1000} | arguments)
    return result, [work for work in pool.asked if isinstance(work, Segment)]


def noises(made: list[Segment]) -> list[Noise]:
    return [work.noise for work in made if work.noise is not None]


def bases(made: list[Noise]) -> list[Noise]:
    return [noise.base for noise in made if not isinstance(noise, Fresh)]


@pytest.mark.parametrize(
    ("strategy", "eta"),
    [
        (RandomSearch(first=1, rounds=1), None),
        (ZeroOrder(neighbours=1, iterations=0), None),
        (ZeroOrder(neighbours=1, tau=1.0, iterations=1, eta=0.0), 0.0),
        (Evolutionary(population=1, elites=0, generations=0), None),
        (Evolutionary(population=1, elites=0, beta=0.0, generations=2, eta=0.0), 0.0),
        (SearchOverPaths(width=1, paths=1), None),
    ],
)
def test_one_of_everything_is_plain_sampling(strategy, eta):
    """One image, or as many as there are where a walk goes nowhere."""
    images = {"images": 1} if isinstance(strategy, SearchOverPaths) else {}
    found, _ = run(strategy, seed=7, **images)
    plain, _ = run(RandomSearch(first=1, rounds=1), seed=7, eta=eta)
    assert found.score == plain.score
    assert np.array_equal(found.image, plain.image)


def test_random_search_grows_by_rounds_and_makes_the_images_of_best_of_n():
    result, made = run(RandomSearch(first=2, growth=2, rounds=3))
    assert [work.noise for work in made] == [Fresh(i) for i in range(2 + 4 + 8)]
    best, _ = run(RandomSearch(first=14, rounds=1))
    assert result.score == best.score


def test_random_search_stops_when_rounds_bring_no_more():
    _, made = run(RandomSearch(first=1, growth=1, patience=2))
    result, _ = run(RandomSearch(first=len(made), rounds=1))
    scores = [t.score for t in result.trials if t.kind == "sample"]
    assert len(made) == int(np.argmax(scores)) + 3 < 125
    assert all(max(scores[:i]) > max(scores[: i - 2]) for i in range(3, len(made)))


def test_zero_order_walks_to_the_best_neighbour():
    result, made = run(ZeroOrder(neighbours=3, tau=0.8, iterations=3, eta=0.0))
    score = {t.lineage: t.score for t in result.trials if t.kind == "sample"}
    walk, lineages = noises(made), [work.lineage for work in made]
    assert walk[0] == Fresh(0) and len(walk) == 10
    for step in range(1, 3):
        ring = range(1 + 3 * (step - 1), 1 + 3 * step)
        best = max(ring, key=lambda i: score[lineages[i]])
        assert bases(walk)[3 * step : 3 * step + 3] == [walk[best]] * 3
    near, base = start_noise(0, walk[4], (4, 4)).ravel(), start_noise(0, walk[4].base, (4, 4)).ravel()
    assert near @ base / np.linalg.norm(near) / np.linalg.norm(base) == pytest.approx(0.8, abs=1e-5)
    assert all(work.sampling.eta == 0 for work in made)
    assert all(work.sampling.eta == 1 for work in run(ZeroOrder(iterations=1))[1])


def test_a_climber_never_steps_down():
    result, made = run(ZeroOrder(neighbours=1, tau=0.0, climb=True), nfe=25 * 8, eta=0.5)
    score = {t.lineage: t.score for t in result.trials if t.kind == "sample"}
    stood = score[made[0].lineage]
    for work in made[1:]:
        assert isinstance(work.noise, Near)
        assert score[work.lineage[:-1]] == stood
        stood = max(stood, score[work.lineage])
    assert stood == result.score > score[made[0].lineage]


def test_elites_live_on_and_children_descend_from_winners():
    strategy = Evolutionary(population=4, elites=2, tournament=64, generations=3)
    result, made = run(strategy)
    assert len(made) == 4 + 3 * 2
    score = {t.lineage: t.score for t in result.trials if t.kind == "sample"}
    seen = [(score[work.lineage], work.noise) for work in made]
    for generation in range(1, 4):
        # A tournament of nearly everybody is won by the best, who lives on from the generation before.
        alive = seen[: 4 + 2 * (generation - 1)]
        best = max(alive, key=lambda one: one[0])[1]
        born = [noise for _, noise in seen[4 + 2 * (generation - 1) : 4 + 2 * generation]]
        assert all(isinstance(noise, Mix) and noise.base == best and noise.beta == 0.2 for noise in born)


def test_tournaments_of_one_choose_parents_at_random():
    _, made = run(Evolutionary(population=8, elites=1, tournament=1, generations=1))
    parents = Counter(bases(noises(made)))
    assert len(parents) > 2 and set(parents) <= {Fresh(i) for i in range(8)}


def test_paths_start_later_round_by_round_from_the_survivors():
    result, made = run(SearchOverPaths(width=2, paths=2, rounds=3), nfe=2 * 8 + 4 * (5 + 4 + 2))
    assert [work.renoise for work in made] == [None] * 2 + [3] * 4 + [4] * 4 + [6] * 4
    assert all(work.region.mask.all() for work in made[2:])
    rows = [t for t in result.trials if t.kind in ("sample", "refine")]
    for first, last in ((2, 6), (6, 10), (10, 14)):
        alive = sorted(rows[:first], key=lambda t: t.score, reverse=True)[:2]
        parents = Counter(t.parent_id for t in rows[first:last])
        assert parents == {t.trial_id: 2 for t in alive}
    assert result.ledger.nfe == 60
    assert result.score == max(t.score for t in rows)


def test_after_the_last_round_new_images_come_in():
    _, made = run(SearchOverPaths(), nfe=60 + 16)
    assert [work.noise for work in made[-2:]] == [Fresh(14), Fresh(15)]


def test_wrong_settings_are_refused():
    for make, message in (
        (lambda: RandomSearch(growth=0.5), "growth must be 1 or more, not 0.5"),
        (lambda: ZeroOrder(tau=1.5), "tau must be within -1..1, not 1.5"),
        (lambda: ZeroOrder(neighbours=0), "neighbours must be 1 or more"),
        (lambda: Evolutionary(population=3, elites=3), "elites must be within 0..2"),
        (lambda: Evolutionary(beta=2), "beta must be within 0..1, not 2"),
        (lambda: SearchOverPaths(rounds=0), "rounds must be 1 or more, not 0"),
    ):
        with pytest.raises(BadInput, match=message):
            make()
    with pytest.raises(BadInput, match="eta must be 0 or more, not -1"):
        run(ZeroOrder(eta=-1.0))
    costs = TestRandomSearch().costs
    for strategy in (RandomSearch(), ZeroOrder(), Evolutionary(), SearchOverPaths()):
        with pytest.raises(BadInput, match="budget in NFE, images or FLOPs"):
            strategy.plan(Budget(seconds=3), costs)
