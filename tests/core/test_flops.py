"""FLOPs as a currency: what trials cost in them, how budgets count them, and searches priced as on a published model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lotts_search import BudgetTooSmall, search
from lotts_search.core.budget import Budget, Ledger
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import Plan, gather_completed
from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.strategies.best_of_n import BestOfN
from lotts_search.strategies.lotts import LoTTS
from lotts_search.testing import AnalyticPool, analytic_info
from lotts_search.testing.analytic import PRICES
from lotts_search.work.prices import Prices, published
from lotts_search.work.requests import Encode, Locate, Predict, Sampling, Score, ScoreMosaics, Segment, Work
from tests.scripted import Scripted

INFO = analytic_info()
COSTS = Costs.of(INFO, Sampling.of(INFO, "a"))
FLUX = replace(COSTS, prices=published("flux"))


def test_each_kind_of_trial_has_its_price() -> None:
    """On the analytic model: two rows of 1000 a step, decoding 150, previews 70, encoding 30, scores 7."""
    assert COSTS.step == Cost(1, 0, 2000)
    assert COSTS.sample == Cost(8, 1, 8 * 2000 + 150 + 7)
    assert COSTS.refine(5) == Cost(3, 1, 3 * 2000 + 150 + 7)
    assert COSTS.segment(2, 6, scored=True) == Cost(3, 0, 3 * 2000)
    assert (COSTS.score, COSTS.known_score) == (Cost(1, 0, 2000 + 70 + 7), Cost(0, 0, 70 + 7))
    assert COSTS.localize() == Cost(1, 0, 2 * 1000)
    assert (COSTS.encode, COSTS.scores(32)) == (Cost(0, 0, 30 + 7), Cost(0, 0, 32 * 7))


@pytest.mark.parametrize("count", [1, 7, 12_345, 10_000_001])
def test_sums_are_exact_however_large(count: int) -> None:
    """Above 2^53 neighbouring floats differ by more than 1."""
    spent = sum((FLUX.sample for _ in range(min(count, 1000))), Cost())
    exact = count * FLUX.sample.flops
    assert Budget(flops=exact).count(FLUX.sample) == count == Budget(flops=exact + 1).count(FLUX.sample)
    assert Budget(flops=exact - 1).count(FLUX.sample) == count - 1
    assert Budget(flops=exact).minus(spent).count(FLUX.sample) == count - min(count, 1000)


def test_a_trial_is_compared_in_the_currency_that_is_limited() -> None:
    cost = Cost(2, 1, 300)
    prices = [budget.price(cost) for budget in (Budget(), Budget(nfe=10), Budget(images=3), Budget(flops=1000))]
    assert prices == [2, 2, 2, 300]
    assert (Budget(nfe=10, flops=1000).price(cost), Budget(nfe=4, flops=1000).price(cost)) == (0.3, 0.5)
    ledger = Ledger(limits=Budget(flops=1000), costs=COSTS)
    ledger.reserve(cost)
    assert (ledger.price(cost), ledger.left) == (300, Budget(flops=700))
    assert (ledger.left.flops, ledger.left.spent_of(ledger.limits)) == (700, pytest.approx(0.3))


def test_a_budget_stands_for_fractions_of_trials() -> None:
    assert Budget(nfe=42.5).fraction(COSTS.score) == 42.5
    assert Budget(flops=3000, nfe=100).fraction(Cost(1, 0, 2000)) == 1.5
    assert Budget(images=3).allowed(COSTS.sample) == Budget(nfe=24, images=3)
    assert Budget(images=3, flops=9).allowed(COSTS.sample).nfe is None


def test_what_a_budget_does_not_limit_is_bounded_by_the_dearest_trials() -> None:
    """Of 30 NFE: at most ten of (3, 1, 10) or three of (10, 1, 200)."""
    plan = Plan.within(Budget(nfe=30.0), Cost(3, 1, 10), Cost(10, 1, 200), trials={"sample": 1})
    assert plan == Plan({"sample": 1}, 30.0, False, 10, 600)
    assert Plan.within(Budget(flops=200), Cost(3, 1, 10)).nfe == 60
    assert Plan.within(Budget(images=2), Cost(3, 1, 10), Cost(1, 0, 5)).flops is None


def by_hand(asked: list[Work], prices: Prices, per_step: int) -> float:
    """Add up what the works of a search cost."""
    total = 0.0
    for work in asked:
        match work:
            case Segment():
                complete = work.stop == work.sampling.steps
                total += work.nfe * per_step * prices.row + complete * prices.decode
            case Predict():
                total += work.nfe * per_step * prices.row + prices.preview
            case Locate():
                total += work.source.rows() * prices.row
            case Encode():
                total += prices.encode
            case Score():
                total += prices.score
            case ScoreMosaics():
                total += len(work.choices) * prices.score
    return total


@pytest.mark.parametrize(("as_", "per_step"), [(None, 2), ("sdxl+tiny", 2), ("flux", 1)])
@pytest.mark.parametrize("strategy", ["lotts", "svdd", "mosaic", "ttgen", "particle"])
def test_the_ledger_is_the_sum_of_all_works(strategy: str, as_: str | None, per_step: int) -> None:
    prices = PRICES if as_ is None else published(as_)
    with AnalyticPool() as pool:
        result = search("red star", strategy=strategy, pool=pool, nfe=80, as_=as_)
        assert result.ledger.flops == pytest.approx(by_hand(pool.asked, prices, per_step), rel=1e-12)
        assert result.ledger.flops == pytest.approx(result.ledger.reserved.flops, rel=1e-12)
    assert sum(trial.flops for trial in result.trials) == pytest.approx(result.ledger.flops, rel=1e-12)


def test_an_unguided_search_is_priced_as_users_run_the_published_model() -> None:
    """SDXL runs two rows per step; localizations are rows in both."""
    sdxl = published("sdxl")
    with AnalyticPool(analytic_info(guidance=1.0)) as pool:
        result = search("red star", strategy=LoTTS(initial=1, refinements=1), pool=pool, images=2, as_="sdxl")
    assert result.ledger.rows == 8 + 2 + 5
    assert result.ledger.flops == (2 * 8 + 2 + 2 * 5) * sdxl.row + 2 * (sdxl.decode + sdxl.score)


def test_prices_of_other_models_decide_what_a_budget_pays_for() -> None:
    images = []
    for as_ in ("sd21", "sdxl", "flux"):
        with AnalyticPool() as pool:
            result = search("red star", strategy=BestOfN(), pool=pool, flops=1e15, as_=as_)
        prices = published(as_)
        image = 8 * prices.rows_per_step * prices.row + prices.decode + prices.score
        assert result.ledger.images == 1e15 // image
        images.append(result.ledger.images)
        assert (result.trials[0].budget_flops, result.trials[0].budget_nfe) == (1e15, None)
    assert images == [24, 8, 1]


def test_a_given_image_is_encoded_and_scored_at_its_price() -> None:
    image = np.full((6, 6, 3), 128, np.uint8)
    least = LoTTS().least(COSTS, image=True)
    assert least.flops == 30 + 7 + 2000 + 5 * 2000 + 150 + 7
    with AnalyticPool() as pool:
        result = search("red star", pool=pool, image=image, flops=least.flops)
        assert result.ledger.flops == least.flops and result.ledger.images == 1
        with pytest.raises(BudgetTooSmall, match="FLOPs does not pay for one refinement"):
            search("red star", pool=pool, image=image, flops=least.flops - 1)


def test_a_failed_trial_is_charged_as_reserved() -> None:
    def lose(work: Work) -> Exception | None:
        return Failure("lost") if isinstance(work, Locate) else None

    async def script(handle):
        image = await handle.sample(0)
        await gather_completed(handle.localize(image))

    with AnalyticPool(fail=lose) as pool, pytest.warns(Notice, match="lost"):
        result = search("red star", strategy=Scripted(script), pool=pool, flops=1e6)
    assert result.ledger.flops == result.ledger.reserved.flops == (COSTS.sample + COSTS.localize()).flops


def test_a_model_without_prices_has_no_budget_in_flops() -> None:
    with AnalyticPool(replace(INFO, prices=Prices())) as pool:
        with pytest.raises(BadInput, match="analytic does not say how many FLOPs a network row takes"):
            search("red star", pool=pool, flops=1e6)
        assert pool.asked == []
        assert search("red star", strategy="best-of-n", pool=pool, flops=2e14, as_="sdxl").ledger.images == 1
    with AnalyticPool() as pool, pytest.raises(BadInput, match="sdxl"):
        search("red star", pool=pool, flops=1e6, as_="sdx")


def test_a_verifier_without_a_price_is_reported() -> None:
    with (
        AnalyticPool(replace(INFO, prices=replace(PRICES, score=0.0))) as pool,
        pytest.warns(Notice, match="shapes-reward does not say how many FLOPs a score takes: its scores count as 0"),
    ):
        search("red star", pool=pool, flops=1e5)


@pytest.mark.parametrize("flops", [-1.0, float("inf"), float("nan")])
def test_flops_are_a_number(flops: float) -> None:
    with pytest.raises(BadInput, match="a budget's flops must be a number of 0 or more"):
        Budget(flops=flops)
