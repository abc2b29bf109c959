"""Best-of-N."""

from __future__ import annotations

from lotts_search import search
from lotts_search.core.strategy import Strategy
from lotts_search.strategies.best_of_n import BestOfN
from lotts_search.testing import AnalyticPool, seconds_as_requests
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.requests import Score, Segment


class TestBestOfN(StrategyConformance):
    def strategy(self) -> Strategy:
        return BestOfN()


def test_the_best_of_n_samples_wins():
    with AnalyticPool() as pool:
        result = search("red star", strategy=BestOfN(n=5), pool=pool, nfe=1000)
    scores = [t.score for t in result.trials if t.kind == "sample"]
    assert len(scores) == 5
    assert result.score == max(scores)
    assert result.best_refined is None


def test_template_changes_the_prompt_of_the_samples_alone():
    with AnalyticPool() as pool:
        search("red {star}", strategy=BestOfN(n=1, template="A high-quality image of {}"), pool=pool, nfe=8)
    made, scored = pool.asked
    assert isinstance(made, Segment) and made.sampling.prompt == "A high-quality image of red {star}"
    assert isinstance(scored, Score) and scored.prompt == "red {star}"


def test_time_alone_goes_on_until_it_is_over():
    with AnalyticPool() as pool, seconds_as_requests(pool):
        result = search("red star", strategy=BestOfN(), pool=pool, seconds=60)
    made = [t for t in result.trials if t.kind == "sample"]
    assert result.status == "seconds"
    assert len({t.lineage for t in made}) == len(made) > 20
    assert len(pool.asked) >= 60 and result.ledger.images == [t.status for t in made].count("done") > 20
