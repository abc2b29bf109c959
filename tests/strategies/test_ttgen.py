"""TTGen."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lotts_search import BadInput, search
from lotts_search.core.strategy import Budget, Cost, Costs, Strategy
from lotts_search.core.trial_table import image_hash
from lotts_search.errors import Failure, PoolClosed
from lotts_search.strategies.resampling import Resampling
from lotts_search.strategies.ttgen import TTGen
from lotts_search.testing import AnalyticPool, analytic_info
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.requests import Predict, Result, Rewrite, Score, Segment, Usage, Work

# On the analytic model T is 8: an image with 4 injected steps of 3 prompts costs 8 + 4·2 = 16 NFE.


class TestTTGen(StrategyConformance):
    def strategy(self) -> Strategy:
        return TTGen()


class Few(StrategyConformance):
    """The same tests of other settings, with fewer budgets."""

    def budgets(self, count: int = 8) -> list[dict[str, Any]]:
        return super().budgets(min(count, 8))


class TestManyPrompts(Few):
    def strategy(self) -> Strategy:
        return TTGen(prompts=12, injection=0.25, original=True)


class TestOneOfTwo(Few):
    def strategy(self) -> Strategy:
        return TTGen(prompts=2, injection=0.75, n=2)

    def cheapest(self, costs: Costs, plan: Any) -> Cost | None:
        return costs.sample if plan.trials.get("sample", 0) < 2 else None


class Writing(AnalyticPool):
    """The analytic model with a rewriter that is given."""

    def __init__(self, write: Any, **options: Any):
        super().__init__(**options)
        self.write = write

    def submit(self, work: Work) -> Future[Result]:
        if not isinstance(work, Rewrite):
            return super().submit(work)
        self.asked.append(work)
        answered: Future[Result] = Future()
        try:
            answered.set_result(Result(Usage(rewrites=1), prompts=tuple(self.write(work))))
        except Failure as failure:
            answered.set_exception(failure)
        return answered


class Believing(Writing):
    """A model that pulls its predictions towards intact by the number in a prompt (``… 0.5``)."""

    def _answer(self, work: Work, future: Future[Result]) -> None:
        if isinstance(work, Segment) and work.state is not None and work.state.step > 0:
            told = work.sampling.prompt.rpartition(" ")[2]
            pull = float(told) if told.replace(".", "").isdigit() else 0.0
            latent = work.state.latent + np.float32(pull)
            work = replace(work, state=replace(work.state, latent=latent))
        super()._answer(work, future)


@pytest.mark.parametrize("settings", [{"prompts": 1}, {"prompts": 3}, {"prompts": 1, "original": True}])
def test_with_the_original_prompt_it_is_plain_sampling(settings: dict[str, Any]) -> None:
    with Writing(lambda work: [work.prompt] * work.count) as pool:
        result = search("red star", strategy=TTGen(n=2, **settings), pool=pool, images=2)
    with AnalyticPool() as pool:
        plain = search("red star", strategy="best-of-n", settings={"n": 2}, pool=pool, images=2)
    images = {image_hash(result.images[t.trial_id]) for t in result.trials if t.images}
    assert images == {t.image for t in plain.trials if t.images} and len(images) == 2
    assert result.score == plain.score and result.ledger.nfe == plain.ledger.nfe == 16


def test_the_step_that_fits_the_original_prompt_best_stays() -> None:
    """Independently: of each step's children the one stays whose decoded prediction scores highest."""

    def write(work: Rewrite) -> list[str]:
        assert work.prompt == "red star"
        return [f"{work.prompt} {pull}" for pull in (0.0, 0.6, 0.3)]

    pool = Believing(write)
    with pool:
        result = search("red star", strategy=TTGen(n=1, injection=0.375), pool=pool, nfe=100)
        plain = search("red star", strategy=Resampling(), pool=pool, nfe=100)
    assert [t.kind for t in result.trials if t.kind != "score"] == [
        "sample",
        *(["rewrite"] + ["advance"] * 3) * 3,
        "advance",
    ]
    advances = [t for t in result.trials if t.kind == "advance"]
    scores = {t.parent_id: t for t in result.trials if t.kind == "score" and not t.images and t.stop is None}
    for step in range(3):
        children = advances[3 * step : 3 * step + 3]
        best = max(children, key=lambda child: scores[child.trial_id].score or 0)
        assert {t.parent_id for t in advances[3 * step + 3 : 3 * step + 6]} == {best.trial_id}
        assert len({scores[child.trial_id].score for child in children}) > 1
    segments = [asked for asked in pool.asked if isinstance(asked, Segment)]
    assert segments[10].sampling.prompt == "red star" and segments[10].stop == 8
    assert {asked.prompt for asked in pool.asked if isinstance(asked, Score)} == {"red star"}
    looks = [asked for asked in pool.asked if isinstance(asked, Predict)]
    assert len(looks) == 1 + 9 and all(look.nfe == 0 and look.state.previous is look.state.predicted for look in looks)
    assert result.ledger.nfe == 8 + 3 * 2 and result.score > plain.score


@pytest.mark.parametrize(("repeated", "images"), [(False, 2), (True, 4)])
def test_what_equal_prompts_save_goes_into_further_images(repeated: bool, images: int) -> None:
    """32 NFE pay for two images of 16, or for four of 8 where all three prompts of a step are the same."""

    def write(work: Rewrite) -> list[str]:
        return [work.prompt + (" again" if repeated else f" {i}") for i in range(3)]

    with Writing(write) as pool:
        result = search("red star", strategy=TTGen(), pool=pool, nfe=32)
    assert result.ledger.images == images and result.ledger.nfe == 32
    assert len({t.lineage for t in result.trials if t.kind == "sample"}) == images
    with Writing(write) as pool:
        assert search("red star", strategy=TTGen(n=2), pool=pool, nfe=32).ledger.images == 2


def test_rewrites_are_trials_with_their_prompts() -> None:
    with AnalyticPool() as pool:
        result = search("red star", strategy=TTGen(n=1, prompts=2, injection=0.25), pool=pool, images=1)
    rewrites = [t for t in result.trials if t.kind == "rewrite"]
    assert [t.prompts for t in rewrites] == [("red star, version 1", "red star, version 2")] * 2
    assert [t.lineage for t in rewrites] == [("seed 0",)] * 2 and {t.nfe for t in rewrites} == {0}
    assert (result.ledger.rewrites, result.ledger.fallbacks) == (2, 0)
    table = result.to_table()
    assert sum(table.column("rewrites").to_pylist()) == 2
    assert [p for p in table.column("prompts").to_pylist() if p] == [list(t.prompts) for t in rewrites]
    first, second = (asked for asked in pool.asked if isinstance(asked, Rewrite))
    assert first.seed != second.seed and not np.array_equal(first.image, second.image)
    assert result.rewriter == first.rewriter == "shapes-rewriter"


def test_a_lost_rewriter_is_counted_and_the_search_goes_on() -> None:
    def write(work: Rewrite) -> list[str]:
        raise Failure("the rewriter was lost: out of memory")

    with Writing(write) as pool:
        result = search("red star", strategy=TTGen(n=1, injection=0.25), pool=pool, images=1)
    assert (result.ledger.rewrites, result.ledger.fallbacks, result.ledger.nfe) == (2, 6, 8)
    (first, _) = [t for t in result.trials if t.kind == "rewrite"]
    assert (first.status, first.error, first.prompts) == (
        "done",
        "the rewriter was lost: out of memory",
        ("red star",) * 3,
    )


def test_a_closed_pool_is_no_rewriter_that_fails() -> None:
    def write(work: Rewrite) -> list[str]:
        raise PoolClosed("the pool is closed")

    with Writing(write) as pool, pytest.raises(Failure, match="the pool is closed"):
        search("red star", strategy=TTGen(n=1, injection=0.25), pool=pool, images=1)


def test_what_is_left_pays_for_a_image_with_fewer_revisions() -> None:
    costs = Costs(8, True, analytic_info().defaults)
    for nfe, whole, rest in ((16, 1, None), (23, 1, None), (24, 1, 0), (27, 1, 1), (31, 1, 3), (8, 0, 0), (15, 0, 3)):
        plan = TTGen().plan(Budget(nfe=nfe), costs)
        lengths = [4] * whole + ([rest] if rest is not None else [])
        assert plan.trials.get("rewrite", 0) == sum(lengths)
        assert plan.trials["sample"] == len(lengths)
        assert (plan.nfe, plan.exact) == ((nfe, False) if sum(lengths) else (8, True))
        if lengths == [4]:
            assert TTGen(n=1).plan(Budget(nfe=nfe), costs).nfe == 16
    assert TTGen(prompts=1).plan(Budget(nfe=24), costs).exact
    assert TTGen(injection=0.99).plan(Budget(images=1), costs).trials["rewrite"] == 6
    assert TTGen(n=3).plan(Budget(seconds=1), costs).trials["sample"] == 3
    with pytest.raises(BadInput, match="needs a budget in NFE, images or FLOPs"):
        TTGen().plan(Budget(seconds=1), costs)


@pytest.mark.parametrize("wrong", [{"prompts": 0}, {"prompts": 101}, {"injection": -0.1}, {"injection": 4}, {"n": 0}])
def test_settings_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=f"{next(iter(wrong))} must be"):
        TTGen(**wrong)
