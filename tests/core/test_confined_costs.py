"""Prices of refinements that are confined to their masks: what is planned, reserved and charged is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lotts_search import BadInput, search
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.journal import Journal
from lotts_search.core.localized import Localized
from lotts_search.core.strategy import GivenMask, Plan, Search, Strategy
from lotts_search.fingerprint import FORMAT
from lotts_search.strategies.adaptive_lotts import AdaptiveLoTTS
from lotts_search.strategies.adaptive_mosaic import AdaptiveMosaic
from lotts_search.strategies.beam_in_mask import BeamInMask
from lotts_search.strategies.critique import Critique
from lotts_search.strategies.lotts import LoTTS
from lotts_search.strategies.mosaic import Mosaic
from lotts_search.testing import AnalyticPool, analytic_info
from lotts_search.testing.analytic import PRICES
from lotts_search.work.image_files import mask_png
from lotts_search.work.model import ModelInfo
from lotts_search.work.prices import Prices, published
from lotts_search.work.requests import Sampling, Segment
from tests.core.test_flops import by_hand

INFO = replace(analytic_info(), confines=1, prices=replace(PRICES, tokens=PRICES.row))
"""The analytic model, as if all of its work grew with the number of tokens."""
COSTS = Costs.of(INFO, Sampling.of(INFO, "a"))


@pytest.fixture(autouse=True)
def few_tokens_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The analytic model has few."""
    monkeypatch.setattr("lotts_search.core.costs.PAYS", 1)


LOCALIZED = [LoTTS, BeamInMask, AdaptiveLoTTS, AdaptiveMosaic, Critique]


def test_the_share_of_a_step_grows_with_the_active_tokens() -> None:
    prices = Prices(row=1000, tokens=600)
    assert [prices.confined(active) for active in (1.0, 0.5)] == [1.0, 717 / 1024] and 716 / 1024 < 0.7 < 717 / 1024
    assert Prices(row=1000).confined(0.1) == 1.0 == Prices().confined(0.1)
    half = [published(name).confined(0.5) for name in ("sd21", "sdxl", "flux")]
    assert half == pytest.approx([0.502, 0.505, 0.53], abs=0.001)


def test_confined_steps_of_a_segment_are_counted_by_hand() -> None:
    """Steps 3..7 of 8 with tg = 1: the calls are whole, confined, confined, whole and, unmasked, whole."""
    how = COSTS.confine(0.5, 3, 1, 0)
    assert how is not None and (2 * how.active, how.share) == (COSTS.tokens, 0.5)
    costs = replace(COSTS, confined=how, integrate=1)
    assert costs.refine(3) == Cost(3 + 2 * 0.5, 1, 4 * 2000 + 150 + 7)
    assert costs.segment(3, 5) == Cost(1.5, 0, 3000) and costs.segment(3, 5, scored=True) == Cost(1, 0, 2000)
    assert costs.segment(7, 8) == COSTS.segment(7, 8) and COSTS.confine(1.0, 3, 1, 0) is None


@pytest.mark.parametrize("strategy", LOCALIZED, ids=lambda kind: kind.__name__)
def test_every_second_masked_step_is_whole_where_nothing_is_chosen(strategy: type[Localized]) -> None:
    """And all steps of a model that cannot be confined."""

    def trials(info: ModelInfo, **settings: Any) -> list[tuple[str, str, float]]:
        with AnalyticPool(info) as pool:
            found = search("red star", strategy=strategy(**settings), pool=pool, nfe=60).trials
        return [(t.trial_id, t.kind, t.nfe) for t in found]

    whole = trials(analytic_info())
    assert trials(INFO) == trials(INFO, refresh=2, warmup=1, ring=0) != whole
    assert trials(INFO, refresh=1) == trials(analytic_info(), refresh=1) == whole


def test_few_tokens_are_confined_only_where_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert COSTS.refresh == 2
    monkeypatch.undo()
    assert COSTS.refresh == 1 and LoTTS().refinement(COSTS).nfe == 5 and LoTTS(refresh=2).refinement(COSTS).nfe == 4
    assert [replace(COSTS, grid=(32, side)).refresh for side in (31, 32)] == [1, 2]


def test_a_refinement_of_the_handle_is_whole_unless_it_says_otherwise() -> None:
    class Refined(Strategy):
        async def run(self, search: Search) -> None:
            parent = await search.sample(0)
            mask = await search.localize(parent)
            await search.refine(parent, mask, seed=1)
            await search.refine(parent, mask, seed=2, refresh=search.costs.refresh)

        def plan(self, budget: Budget, costs: Costs) -> Plan:
            raise NotImplementedError

    for info, nfe in ((INFO, [5.0, 4.0]), (analytic_info(), [5.0, 5.0])):
        with AnalyticPool(info) as pool:
            result = search("red star", strategy=Refined(), pool=pool, nfe=60)
        assert [t.nfe for t in result.trials if t.kind == "refine"] == nfe


@pytest.mark.parametrize("strategy", LOCALIZED, ids=lambda kind: kind.__name__)
def test_a_given_mask_is_priced_by_what_it_covers(strategy: type[Localized]) -> None:
    """A quarter of the tokens, whatever its size in pixels."""
    for side in (8, 64):
        mask = np.zeros((side, side), np.bool_)
        mask[: side // 2, : side // 2] = True
        chosen = strategy(mask=GivenMask(mask_png(mask)))
        assert chosen.confined(COSTS).refine().nfe == 3 + 2 * 0.25
        assert replace(chosen, refresh=1).confined(COSTS).refine().nfe == 5
    with pytest.raises(BadInput, match="the mask is empty"):
        strategy(mask=GivenMask(mask_png(np.zeros((8, 8), np.bool_)))).check(COSTS, INFO)


def test_refinements_that_are_computed_in_another_way_are_not_taken_from_a_journal(tmp_path: Path) -> None:
    """Everything else of the search is."""
    asked = []
    for refresh in (1, None, None):
        with Journal(tmp_path / "a.journal", "a") as journal, AnalyticPool(INFO) as pool:
            search("red star", strategy=LoTTS(refinements=2, refresh=refresh), images=3, pool=pool, journal=journal)
            asked.append([work.confined for work in pool.asked if isinstance(work, Segment)])
    assert asked == [[0, 0, 0], [2, 2], []]


def test_a_journal_of_the_time_before_a_default_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> str:
        with AnalyticPool(INFO) as pool:
            strategy = LoTTS(refinements=2)
            return (
                search("red star", strategy=strategy, images=3, pool=pool, journal=tmp_path / "a").trials[0].search_id
            )

    assert run() == run()
    monkeypatch.setattr("lotts_search.fingerprint.FORMAT", FORMAT + 1)
    with pytest.raises(BadInput, match="another version"):
        run()


@pytest.mark.parametrize("as_", [None, "flux"])
@pytest.mark.parametrize("strategy", [LoTTS, BeamInMask, AdaptiveLoTTS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("currency", ["nfe", "flops"])
def test_plan_reservation_and_ledger_are_equal(strategy: type[Localized], currency: str, as_: str | None) -> None:
    prices = PRICES if as_ is None else published(as_)
    limit: dict[str, Any] = {currency: {"nfe": 60.0, "flops": 60.0 * prices.row * 2}[currency]}
    chosen = strategy(refresh=3, ring=0, start=2, integrate=1)
    with AnalyticPool(INFO) as pool:
        result = search("red star", strategy=chosen, pool=pool, as_=as_, **limit)
    ledger = result.ledger
    assert any(work.confined for work in pool.asked if isinstance(work, Segment))
    assert ledger.nfe == ledger.reserved.nfe and ledger.flops == pytest.approx(ledger.reserved.flops, rel=1e-12)
    per_step = 2 if as_ is None else 1
    assert ledger.flops == pytest.approx(by_hand(pool.asked, prices, per_step), rel=1e-12)
    plan = chosen.plan(Budget(**limit), ledger.costs)
    if plan.exact:
        assert (plan.nfe, plan.images) == (ledger.nfe, ledger.images)
        assert plan.flops == pytest.approx(ledger.flops, rel=1e-12)


def test_confined_refinements_leave_room_for_more_images() -> None:
    counts = []
    for refresh in (1, 8):
        with AnalyticPool(INFO) as pool:
            strategy = LoTTS(refresh=refresh, ring=0, start=2)
            counts.append(search("red star", strategy=strategy, pool=pool, nfe=60).ledger.images)
    assert counts[0] < counts[1]


def test_what_cannot_be_confined_is_refused_before_the_first_trial() -> None:
    with AnalyticPool() as pool:
        with pytest.raises(BadInput, match="only those of the families flux, stable-diffusion-3"):
            search("red star", strategy=LoTTS(refresh=2), pool=pool, nfe=60)
        with pytest.raises(BadInput, match="takes no refresh=2"):
            search("red star", strategy=Mosaic(refresh=2), pool=pool, nfe=60)
        with pytest.raises(BadInput, match="refresh must be 1 or more, not 0"):
            search("red star", strategy=LoTTS(refresh=0), pool=pool, nfe=60)
        with pytest.raises(BadInput, match="warmup must be 1 or more, not 0"):
            search("red star", strategy=LoTTS(refresh=2, warmup=0), pool=pool, nfe=60)
    assert not pool.asked
