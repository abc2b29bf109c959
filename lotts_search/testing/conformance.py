"""The tests that every strategy must pass. Subclass :class:`StrategyConformance` in your own test file::

    class TestMine(StrategyConformance):
        def strategy(self) -> Strategy:
            return Mine(width=3)

pytest then runs them on the analytic model.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lotts_search.api import asearch, search
from lotts_search.core.budget import CURRENCIES, Budget
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.journal import Journal
from lotts_search.core.localized import Localized
from lotts_search.core.result import SearchResult
from lotts_search.core.strategy import FREE, Plan, Strategy
from lotts_search.errors import BadInput, BudgetTooSmall, refuse_renamed
from lotts_search.testing.analytic import AnalyticPool, analytic_info
from lotts_search.testing.clock import seconds_as_requests
from lotts_search.work.requests import Sampling

PROMPT = "center red star"
SECONDS = 200
"""The time limit of a search; a second passes with each request."""
LIMITS = (("nfe",), ("images",), ("nfe", "images"), ("flops",), ("nfe", "flops"), ("images", "flops"))
"""What the random budgets limit."""
_OUTCOMES: dict[type, list[tuple[dict[str, Any], SearchResult]]] = {}


def tree(result: SearchResult) -> list[tuple[object, ...]]:
    """Return everything about a search that must not depend on when and where its trials ran."""
    measured = {"device_s", "queue_s", "started", "finished", "node", "actor", "attempts", "run_id"}
    return [tuple((name, value) for name, value in vars(t).items() if name not in measured) for t in result.trials]


class StrategyConformance:
    """Subclasses define :meth:`strategy`, and :meth:`cheapest` where the cheapest next trial is not a sample."""

    info = analytic_info()
    """The model that the strategy is tested on."""

    images_are_steps = False
    """Whether N images without NFE stand for the steps of N samples (:meth:`Budget.allowed <lotts_search.core.budget.Budget.allowed>`)."""

    uses_time = False
    """Whether the strategy goes on until the time is over where nothing but time limits the search."""

    def __init_subclass__(cls) -> None:
        refuse_renamed(cls, {"pictures_are_steps": "images_are_steps"})

    def strategy(self) -> Strategy:
        """Return the strategy to test; each call must make a new one."""
        raise NotImplementedError

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        """Return the cost of the cheapest trials that the strategy could still run after its plan, by default of what it begins
        with; None where there are none."""
        return self.strategy().least(costs)

    def impossible(self) -> list[Strategy]:
        """Return strategies with settings that cannot work on the model; by default, those of masks and refinements."""
        strategy, steps = self.strategy(), self.costs.steps
        if not isinstance(strategy, Localized):
            return []
        wrong: list[dict[str, Any]] = [{"start": steps}, {"start": -1}, {"integrate": steps + 1}, {"ratio": 2.0}]
        return [replace(strategy, temporal=True, holistic=True, **settings) for settings in wrong]

    def run(self, **arguments: Any) -> SearchResult:
        """Run a search by the strategy on the analytic model."""
        with AnalyticPool(self.info, arguments.pop("shuffle", None)) as pool:
            return search(PROMPT, strategy=self.strategy(), pool=pool, **arguments)

    @property
    def costs(self) -> Costs:
        """What trials cost on the analytic model."""
        return Costs.of(self.info, Sampling.of(self.info, PROMPT))

    def budgets(self, count: int = 50) -> list[dict[str, Any]]:
        """Return random budgets from one sample to a dozen: NFE, images, FLOPs, or two of them."""
        rng = random.Random(0)
        least = self.strategy().least(self.costs)
        found: list[dict[str, Any]] = []
        for i in range(count):
            nfe = least.nfe + rng.randrange(int(24 * least.nfe)) / 2
            images = max(1, least.images) + rng.randrange(12)
            flops = least.flops + rng.randrange(12 * least.flops)
            limits: dict[str, Any] = {"nfe": nfe, "images": images, "flops": flops}
            found.append({name: limits[name] for name in LIMITS[i % len(LIMITS)]})
        return found

    def outcomes(self) -> list[tuple[dict[str, Any], SearchResult]]:
        """Return the random budgets with a search for each; all tests share the same searches."""
        if type(self) not in _OUTCOMES:
            _OUTCOMES[type(self)] = [(budget, self.run(**budget)) for budget in self.budgets()]
        return _OUTCOMES[type(self)]

    def test_same_tree_whatever_the_real_order(self) -> None:
        for budget in self.budgets(6):
            expected = self.run(**budget)
            for shuffle in (1, 2):
                shuffled = self.run(shuffle=shuffle, **budget)
                assert tree(shuffled) == tree(expected)
                assert shuffled.best is not None and expected.best is not None
                assert shuffled.best.trial_id == expected.best.trial_id

    def test_other_seeds_give_other_images(self) -> None:
        one, other = self.run(**self.budgets(1)[0], seed=1), self.run(**self.budgets(1)[0], seed=2)
        assert {t.image for t in one.trials if t.image}.isdisjoint({t.image for t in other.trials if t.image})

    def test_budget_is_never_exceeded(self) -> None:
        for budget, result in self.outcomes():
            for currency in CURRENCIES:
                assert getattr(result.ledger, currency) <= budget.get(currency, float("inf")), budget

    def test_plan_equals_ledger(self) -> None:
        """In all currencies; where the scores decide on the trials, the plan has the most that they can cost."""
        for budget, result in self.outcomes():
            plan, ledger = self.strategy().plan(Budget(**budget), self.costs), result.ledger
            if not plan.exact:
                for currency in CURRENCIES:
                    most = getattr(plan, currency)
                    assert most is None or getattr(ledger, currency) <= most <= budget.get(currency, most), budget
                continue
            done = Counter(t.kind for t in result.trials if t.kind not in FREE or t.nfe)
            assert (plan.trials, plan.nfe) == (dict(done), ledger.nfe), budget
            assert (plan.images, plan.flops) == (ledger.images, ledger.flops), budget

    def test_what_is_left_pays_for_nothing_more(self) -> None:
        for budget, result in self.outcomes():
            strategy, limits = self.strategy(), Budget(**budget)
            if self.images_are_steps and limits.nfe is None and limits.flops is None:
                limits = limits.allowed(self.costs.sample)
            cheapest = self.cheapest(self.costs, strategy.plan(limits, self.costs))
            spent = Cost(result.ledger.nfe, result.ledger.images, int(result.ledger.flops))
            assert cheapest is None or not limits.minus(spent).pays(cheapest), budget

    def test_too_small_a_budget_is_a_clear_error_before_any_work(self) -> None:
        least = self.strategy().least(self.costs)
        with AnalyticPool(self.info) as pool:
            with pytest.raises(BudgetTooSmall, match=rf"{least.nfe - 1:g} NFE.* {least.nfe:g} NFE"):
                search(PROMPT, strategy=self.strategy(), pool=pool, nfe=least.nfe - 1)
            assert pool.asked == []

    def test_a_budget_of_time_alone_makes_an_image_or_is_refused_before_any_work(self) -> None:
        """A second passes with each request. With :attr:`uses_time` the search ends with the time, and not before."""
        with AnalyticPool(self.info) as pool, seconds_as_requests(pool):
            try:
                result = search(PROMPT, strategy=self.strategy(), pool=pool, seconds=SECONDS)
            except BadInput:
                assert pool.asked == [] and not self.uses_time
                return
        assert result.image is not None
        assert not self.uses_time or result.status == "seconds", "it ended before the time was over"

    def test_settings_that_cannot_work_are_refused_before_any_work(self) -> None:
        for strategy in self.impossible():
            with AnalyticPool(self.info) as pool:
                with pytest.raises(BadInput):
                    search(PROMPT, strategy=strategy, pool=pool, **self.budgets(1)[0])
                assert pool.asked == [], strategy

    def test_resume_equals_the_uninterrupted_run(self, tmp_path: Path) -> None:
        """Resumed from a journal cut anywhere, also inside a record, a search has the same trials and repeats no work."""
        for number, budget in enumerate(self.budgets(3)):
            path = tmp_path / f"{number}.journal"
            with AnalyticPool(self.info) as pool:
                whole = search(PROMPT, strategy=self.strategy(), pool=pool, journal=path, **budget)
                total = len(pool.asked)
            data = path.read_bytes()
            for share in (0.0, 0.3, 0.6, 0.9, 1.0):
                path.write_bytes(data[: int(share * len(data))])
                with Journal(path, whole.trials[0].search_id) as journal, AnalyticPool(self.info, shuffle=4) as pool:
                    known = len(journal)
                    resumed = search(PROMPT, strategy=self.strategy(), pool=pool, journal=journal, **budget)
                assert tree(resumed) == tree(whole)
                assert len(pool.asked) == total - known

    def test_searches_side_by_side_do_not_touch_each_other(self) -> None:
        budget = self.budgets(1)[0]

        async def both(pool: AnalyticPool) -> list[SearchResult]:
            runs = [asearch(PROMPT, strategy=self.strategy(), pool=pool, seed=seed, **budget) for seed in (1, 2)]
            return list(await asyncio.gather(*runs))

        with AnalyticPool(self.info, shuffle=3) as pool:
            together = asyncio.run(both(pool))
        assert [tree(result) for result in together] == [tree(self.run(**budget, seed=seed)) for seed in (1, 2)]
