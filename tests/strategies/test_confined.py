"""Strategies with refinements on a model that can be confined to their masks, where half of their masked steps are by default."""

from __future__ import annotations

from typing import Any

import pytest

from lotts_search import search
from lotts_search.core.localized import Localized
from lotts_search.core.strategy import Cost, Costs, Plan, RandomMask, Strategy
from lotts_search.strategies.adaptive_lotts import AdaptiveLoTTS
from lotts_search.strategies.adaptive_mosaic import AdaptiveMosaic
from lotts_search.strategies.beam_in_mask import BeamInMask
from lotts_search.strategies.critique import Critique
from lotts_search.strategies.lotts import LoTTS
from lotts_search.strategies.mosaic import Mosaic
from lotts_search.strategies.particle import Particle
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.requests import Segment
from tests.core.test_confined_costs import INFO

# On this model a sample costs 8 NFE, a localization 1 and a refinement 3 + 2 · 1/2: of its steps 3..7 the second and the
# fourth are confined to half of the tokens.


@pytest.fixture(autouse=True)
def few_tokens_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The analytic model has few."""
    monkeypatch.setattr("lotts_search.core.costs.PAYS", 1)


class Confined(StrategyConformance):
    info = INFO

    most = 12
    """Budgets that are tried."""

    def budgets(self, count: int = 50) -> list[dict[str, Any]]:
        return super().budgets(min(count, self.most))

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        strategy = self.strategy()
        assert isinstance(strategy, Localized)
        return strategy.located_refinement(costs)


class TestLoTTS(Confined):
    def strategy(self) -> Strategy:
        return LoTTS()


class TestDeepLoTTS(Confined):
    def strategy(self) -> Strategy:
        return LoTTS(depth=2, ratio=0.25, refresh=4, ring=1)


class TestAdaptiveLoTTS(Confined):
    def strategy(self) -> Strategy:
        return AdaptiveLoTTS(worth=0.0)


class TestAdaptiveMosaic(Confined):
    images_are_steps = True
    most = 4

    def strategy(self) -> Strategy:
        return AdaptiveMosaic(children=2, regions=2, worth=0.0)


class TestCritique(Confined):
    uses_time = True

    def strategy(self) -> Strategy:
        return Critique()


class TestBeamInMask(Confined):
    def strategy(self) -> Strategy:
        return BeamInMask(mask=RandomMask(0.5))

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return None  # of the last beams


def test_refinements_are_confined_by_default() -> None:
    for kind in (TestLoTTS, TestAdaptiveLoTTS, TestAdaptiveMosaic, TestCritique):
        refined = [t.nfe for t in kind().run(nfe=80).trials if t.kind == "refine"]
        assert refined and set(refined) == {4.0}, kind


def test_what_selects_at_its_own_steps_is_whole() -> None:
    for strategy in (Mosaic(local=True, children=2, regions=2), Mosaic(local=True, refresh=1), Particle(local=True)):
        with AnalyticPool(INFO) as pool:
            search("red star", strategy=strategy, pool=pool, nfe=40)
        works = [work for work in pool.asked if isinstance(work, Segment)]
        assert any(work.region for work in works) and not any(work.confined for work in works)
