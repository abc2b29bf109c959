"""Virtual time: the order of events, gather, and the budget, through strategies written for the purpose."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import Future

import pytest

from lotts_search import BadInput, BudgetExhausted, Failure, SearchFailed, asearch, search
from lotts_search.core.strategy import Budget, Costs, Plan, Search, Strategy, gather_completed
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance, tree
from lotts_search.work.requests import Generate, Result, Score, Segment
from tests.scripted import run


class LastFirst(AnalyticPool):
    """Really finishes what it is asked in reverse order, once ``count`` samples wait."""

    def __init__(self, count: int):
        super().__init__()
        self.count, self.held = count, []

    def submit(self, work: Generate | Score) -> Future[Result]:
        if not isinstance(work, Segment) or self.count == 0:
            return super().submit(work)
        self.asked.append(work)
        future: Future[Result] = Future()
        self.held.append((work, future))
        if len(self.held) == self.count:
            self.count = 0
            for held in reversed(self.held):
                self._answer(*held)
        return future


def test_continuations_run_by_virtual_finish_not_by_real_order():
    order = []

    async def script(search):
        async def branch(seed, steps):
            await search.sample(seed, steps=steps)
            order.append((seed, search.budget.nfe))

        await gather_completed(branch(0, 9), branch(1, 5), branch(2, 5), branch(3, 7))

    run(script, LastFirst(4))
    assert order == [(1, 5), (2, 10), (3, 17), (0, 26)]


def test_trials_wait_for_a_virtual_worker():
    """Two workers: 6 and 4 begin at 0, then 3 at 4 (ends at 7), then 2 at 6 (ends at 8)."""
    order = []

    async def script(search):
        async def branch(seed, steps):
            await search.sample(seed, steps=steps)
            order.append(steps)

        await gather_completed(*(branch(seed, steps) for seed, steps in enumerate((6, 4, 3, 2))))

    run(script, workers=2)
    assert order == [4, 6, 3, 2]
    order.clear()
    run(script, workers=4)
    assert order == [2, 3, 4, 6]


class Greedy(Strategy):
    """Adapts to scores, to the rest of the budget and to chance, so that any disorder would change its tree."""

    async def run(self, search: Search) -> None:
        async def branch(seed: int) -> None:
            parent = await search.sample(seed)
            for step in range(8):
                assert search.best is not None
                mask = await search.localize(search.best if step % 2 else parent)
                start = int(search.rng.integers(1, 6)) if search.budget.remaining > 30 else 6
                child = await search.refine(parent, mask, start=start, seed=step)
                parent = max(parent, child, key=lambda c: c.score or 0.0)

        await gather_completed(*(branch(seed) for seed in range(3)))

    def plan(self, budget: Budget, costs: Costs) -> Plan:
        raise NotImplementedError


@pytest.mark.parametrize("nfe", [60.5, 83, 1000])
def test_adaptive_searches_are_equal_under_shuffled_completion_also_when_the_budget_runs_out(nfe):
    def once(shuffle):
        with AnalyticPool(shuffle=shuffle) as pool:
            return search("red star", strategy=Greedy(), pool=pool, nfe=nfe)

    expected = once(None)
    assert (expected.ledger.nfe > nfe - 8) == (nfe < 1000)
    for shuffle in range(2):
        assert tree(once(shuffle)) == tree(expected)


def test_gather_returns_the_branches_that_were_not_refused_in_order():
    seen = {}

    async def script(search):
        seen["all"] = await gather_completed(
            *(search.sample(seed, steps=steps) for seed, steps in enumerate((8, 20, 4)))
        )
        seen["none"] = await gather_completed(search.sample(5), search.sample(6))
        seen["empty"] = await gather_completed()

    result = run(script, nfe=15)
    assert [c.lineage for c in seen["all"]] == [("seed 0",), ("seed 2",)]
    assert (seen["none"], seen["empty"]) == ([], [])
    assert result.ledger.nfe == 12 and result.status == "done"


def test_a_refusal_is_raised_in_its_branch_and_reserves_nothing():
    async def script(search):
        refused = search.sample(0, steps=20)
        assert search.budget.remaining == 10
        with pytest.raises(BudgetExhausted, match="20 NFE and 1 image are not left of 10 NFE"):
            await refused
        await search.sample(1)
        assert (search.budget.remaining, search.budget.cost_of("refine", 6)) == (2, 2)

    assert run(script, nfe=10).ledger.nfe == 8


def test_nested_gathers_and_one_trial_awaited_twice():
    async def script(search):
        shared = search.sample(0)

        async def score():
            return (await shared).score

        async def pair():
            return await gather_completed(score(), score())

        (one, two), (three,) = await gather_completed(pair(), gather_completed(score()))
        assert one == two == three == search.best.score

    assert run(script).ledger.images == 1


def test_trials_that_nobody_awaits_count_all_the_same():
    async def script(search):
        search.sample(0)

    result = run(script)
    assert result.ledger.images == 1 and result.score is not None


def test_an_error_of_the_strategy_ends_the_search_and_its_branches():
    ended = []

    async def script(search):
        async def bystander():
            try:
                await search.sample(1)
                await gather_completed(search.sample(2))
            finally:
                ended.append(True)

        async def culprit():
            await search.sample(0, steps=4)
            raise ZeroDivisionError("a slip")

        await gather_completed(bystander(), culprit())

    with pytest.raises(ZeroDivisionError, match="a slip"):
        run(script)
    assert ended == [True]
    with pytest.raises(TypeError, match="may await only its search and gather_completed"):
        run(lambda search: asyncio.sleep(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, c, m: s.sample(0, stop=9), r"stop must be within 0\.\.8, not 9"),
        (lambda s, c, m: s.refine(c, m, start=8, seed=0), r"a step of 0\.\.7, not 8"),
        (lambda s, c, m: s.refine(c, m, start=6, integrate=3, seed=0), r"integrate must be within 0\.\.2"),
        (lambda s, c, m: s.advance(c), "nothing to advance"),
    ],
)
def test_wrong_arguments_have_one_clear_message(call, message):
    async def script(search):
        candidate = await search.sample(0)
        await call(search, candidate, await search.localize(candidate))

    with pytest.raises(BadInput, match=message):
        run(script)


def test_a_partial_candidate_is_neither_refined_nor_localized():
    async def script(search):
        await search.localize(await search.sample(0, stop=3))

    with pytest.raises(BadInput, match="it is at step 3, not complete"):
        run(script)


def fail_when(condition):
    return lambda work: Failure("the latent is NaN") if condition(work) else None


def test_a_failed_trial_ends_its_branch_alone():
    def third(work):
        return isinstance(work, Segment) and work.lineage == ("seed 2",)

    async def script(search):
        assert len(await gather_completed(*(search.sample(seed) for seed in range(4)))) == 3

    result = run(script, AnalyticPool(fail=fail_when(third)))
    (failed,) = [t for t in result.trials if t.status == "failed"]
    assert (failed.lineage, failed.error, failed.nfe, failed.score) == (("seed 2",), "the latent is NaN", 8, None)
    assert result.score == max(t.score for t in result.trials if t.score is not None)
    assert result.ledger.nfe == 32 and len(result.images) == 3


def test_a_failed_score_keeps_the_image():
    async def script(search):
        await gather_completed(search.sample(0), search.sample(1))

    seen = []

    def second_score(work):
        seen.extend([work] if isinstance(work, Score) else [])
        return isinstance(work, Score) and len(seen) == 2

    result = run(script, AnalyticPool(fail=fail_when(second_score)))
    assert [(t.kind, t.status) for t in result.trials][2:] == [("sample", "done"), ("score", "failed")]
    assert len(result.images) == 2


def test_a_search_without_a_image_fails_with_what_there_is():
    async def script(search):
        await gather_completed(search.sample(0), search.sample(1))

    with pytest.raises(
        SearchFailed, match=r"2 of 2 trials failed \(2 sample\), the first because: the latent is NaN"
    ) as caught:
        run(script, AnalyticPool(fail=fail_when(lambda work: True)))
    assert [t.status for t in caught.value.result.trials] == ["failed", "failed"]


def test_an_unexpected_error_of_the_pool_is_a_failure():
    with pytest.raises(SearchFailed, match="KeyError: 'conv'"):
        run(lambda search: search.sample(0), AnalyticPool(fail=lambda work: KeyError("conv")))


def test_many_searches_at_once_equal_the_same_ones_alone():
    async def all_of_them(pool):
        runs = [asearch("red star", strategy=Greedy(), pool=pool, nfe=70, seed=s) for s in range(3)]
        random.Random(0).shuffle(runs)
        return await asyncio.gather(*runs)

    with AnalyticPool(shuffle=5) as pool:
        together = {r.seed: tree(r) for r in asyncio.run(all_of_them(pool))}
    with AnalyticPool() as pool:
        alone = {s: tree(search("red star", strategy=Greedy(), pool=pool, nfe=70, seed=s)) for s in range(3)}
    assert together == alone


def test_the_conformance_suite_finds_disorder_and_a_wrong_plan():
    class ByTheClock(Strategy):
        count = 0

        async def run(self, search: Search) -> None:
            ByTheClock.count += 1
            await search.sample(ByTheClock.count)

        def plan(self, budget: Budget, costs: Costs) -> Plan:
            return Plan.of(("sample", 2, costs.sample))

    class Suite(StrategyConformance):
        def strategy(self) -> Strategy:
            return ByTheClock()

    for check in (
        Suite().test_same_tree_whatever_the_real_order,
        Suite().test_plan_equals_ledger,
        Suite().test_what_is_left_pays_for_nothing_more,
    ):
        with pytest.raises(AssertionError):
            check()
