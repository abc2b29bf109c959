"""EpsilonGreedy: its rounds, checked against the trial table, and what it does at the ends of its settings."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from lotts_search import BadInput, SearchResult, search
from lotts_search.core.strategy import Strategy
from lotts_search.strategies.epsilon_greedy import EpsilonGreedy
from lotts_search.strategies.resampling import Resampling
from lotts_search.strategies.svdd import SVDD
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.testing.gaussian import Gaussian


class TestEpsilonGreedy(StrategyConformance):
    images_are_steps = True

    def strategy(self) -> Strategy:
        return EpsilonGreedy(children=6, candidates=2)


def run(strategy: Strategy, nfe: float, **arguments: Any) -> SearchResult:
    with AnalyticPool() as pool:
        return search("red star", strategy=strategy, pool=pool, nfe=nfe, **arguments)


def test_with_the_budget_of_one_sample_it_is_the_plain_sample() -> None:
    assert np.array_equal(run(EpsilonGreedy(), 8).image, run(Resampling(), 8).image)


@pytest.mark.parametrize("settings", [{"epsilon": 1.0}, {"candidates": 80}])
def test_all_fresh_or_in_one_round_it_is_svdd(settings: dict[str, Any]) -> None:
    found = run(EpsilonGreedy(children=5, **settings), 1 + 5 * 7 + 8)
    expected = run(SVDD(children=5), 1 + 5 * 7 + 8)
    assert sorted(t.lineage for t in found.trials) == sorted(t.lineage for t in expected.trials)
    assert np.array_equal(found.image, expected.image)


def test_rounds_follow_the_best_noise_so_far() -> None:
    """The rule, applied again to the scores of the trial table."""
    result = run(EpsilonGreedy(children=12, candidates=3, epsilon=0.4, share=0.3), 1 + 12 * 7)
    scores = {t.parent_id: t.score for t in result.trials if t.kind == "score"}
    steps = defaultdict(list)
    for trial in result.trials:
        if trial.kind == "advance" and trial.stop != 8:
            steps[trial.stop].append(trial)
    assert [len(children) for children in steps.values()] == [12] * 7
    fresh = near = kept = 0
    state = next(t.trial_id for t in result.trials if t.kind == "sample")
    for stop, children in steps.items():
        assert {t.parent_id for t in children} == {state}
        before = children[0].lineage  # child 0 keeps its parent's noise
        best = None
        for number in range(0, 12, 3):
            for trial in children[number : number + 3]:
                varied = trial.lineage[-1].startswith(f"vary@{stop - 1} 0.3 ")
                if varied:
                    assert best is not None and trial.lineage[:-1] == best.lineage
                else:
                    assert trial.lineage in (before, (*before, trial.lineage[-1]))
                near, fresh = near + varied, fresh + (number > 0 and not varied)
            candidates = ([best] if best else []) + children[number : number + 3]
            chosen = max(candidates, key=lambda t: scores[t.trial_id])
            kept += chosen is best
            best = chosen
        state = best.trial_id
    assert 0.25 < fresh / (fresh + near) < 0.55  # ε = 0.4 of 63, four standard errors are 0.25
    assert kept > 0
    assert result.ledger.nfe == 85


def test_near_noise_is_worth_more_than_fresh_noise_where_the_score_is_smooth() -> None:
    """A climb: on one Gaussian number with the reward x, 12 rounds near the best reach further than 12 fresh draws."""
    model = Gaussian(slope=1.0)

    def mean(strategy: Strategy) -> float:
        with AnalyticPool(model.info(4), model=model) as pool:
            found = [search("x", strategy=strategy, pool=pool, nfe=1 + 12 * 3, seed=s).score for s in range(60)]
        return float(np.mean(found))

    assert mean(EpsilonGreedy(children=12, candidates=2, epsilon=0.3, share=0.9)) > mean(SVDD(children=12)) + 0.05


def test_wrong_settings_are_refused() -> None:
    for settings, message in (
        ({"candidates": 0}, "candidates must be 1 or more, not 0"),
        ({"epsilon": 1.2}, r"epsilon must be within 0\.\.1, not 1.2"),
        ({"share": -0.1}, r"share must be within 0\.\.1, not -0.1"),
    ):
        with pytest.raises(BadInput, match=message):
            EpsilonGreedy(**settings)
    with pytest.raises(BadInput, match="eta must be above 0"):
        run(EpsilonGreedy(), 8, eta=0.0)
