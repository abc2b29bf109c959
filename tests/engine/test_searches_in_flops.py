"""Searches of embedded models under budgets of FLOPs: what they plan is what they spend."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lotts_search import LocalPool, registry, search
from lotts_search.core.budget import Budget
from lotts_search.core.strategy import Strategy
from lotts_search.strategies.adaptive_lotts import AdaptiveLoTTS
from lotts_search.strategies.lotts import LoTTS
from lotts_search.strategies.mosaic import Mosaic
from lotts_search.strategies.particle import Particle
from lotts_search.strategies.svdd import SVDD
from lotts_search.work.image_files import mask_png
from lotts_search.work.masks import FusionMask, GivenMask, QualityMask, WindowMask
from lotts_search.work.pool import Pool
from lotts_search.work.prices import published
from tests.localization.test_windows import RANGE

PROMPT = "top left red circle, top blue star, left pink cross, center yellow square, right green ring, bottom cyan diamond on gray"
WINDOWS = FusionMask(sources=(WindowMask(verifier=RANGE, patch=32, stride=16), QualityMask()))


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with opened("shapes-sd") as made:
        yield made


def opened(model: str) -> LocalPool:
    verifiers = {"shapes-reward": registry.load_verifier("shapes-reward")}
    return LocalPool(registry.load_backbone(model), verifiers, threads=1)


@pytest.mark.parametrize(
    "strategy",
    [
        LoTTS(refresh=2),
        LoTTS(initial=1, refinements=1, mask=WINDOWS),
        LoTTS(refresh=2, mask=GivenMask(mask_png(np.pad(np.ones((16, 16), np.bool_), 24)))),
        Particle(),
        SVDD(children=2),
        Mosaic(children=2, regions=2),
    ],
    ids=["lotts", "windows", "given", "particle", "svdd", "mosaic"],
)
def test_plan_equals_ledger_in_flops(pool: Pool, strategy: Strategy) -> None:
    check_equal(pool, strategy)


@pytest.mark.parametrize("model", ["shapes-sdxl", "shapes-flux"])
def test_plan_equals_ledger_on_the_other_models(model: str) -> None:
    with opened(model) as pool:
        check_equal(pool, Mosaic(children=2, regions=2))
        check_equal(pool, LoTTS(refresh=2), as_="sdxl+tiny")


def check_equal(pool: Pool, strategy: Strategy, as_: str | None = None) -> None:
    least = strategy.least(search(PROMPT, strategy="resampling", pool=pool, steps=3, as_=as_).ledger.costs).flops
    flops = 3.3 * least
    result = search(PROMPT, strategy=strategy, pool=pool, flops=flops, steps=3, as_=as_)
    ledger = result.ledger
    assert least <= ledger.flops == pytest.approx(ledger.reserved.flops, rel=1e-12) and ledger.flops <= flops
    plan = strategy.plan(Budget(flops=flops), ledger.costs)
    assert plan.exact and plan.flops == pytest.approx(ledger.flops, rel=1e-12)
    assert (plan.nfe, plan.images) == (ledger.nfe, ledger.images)


def test_an_adaptive_search_stays_within_its_budget(pool: Pool) -> None:
    image = search(PROMPT, strategy="resampling", pool=pool, steps=3).ledger.flops
    ledger = search(PROMPT, strategy=AdaptiveLoTTS(worth=0.0), pool=pool, flops=6 * image, steps=3).ledger
    assert 5 * image < ledger.flops <= 6 * image and ledger.flops == ledger.reserved.flops


def test_a_given_image_is_priced_too(pool: Pool) -> None:
    height, width = pool.info.image
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    result = search(PROMPT, strategy=LoTTS(mask=QualityMask()), pool=pool, image=image, images=1, steps=3)
    assert [trial.kind for trial in result.trials] == ["encode", "score", "localize", "refine", "score"]
    assert result.ledger.flops == result.ledger.reserved.flops > pool.info.prices.encode > 0


def test_prices_of_windows_are_known_beforehand(pool: Pool) -> None:
    """Three by three windows of 32 of 64 pixels, at 11 FLOPs each, or at the price of a score of ImageReward."""
    strategy = LoTTS(initial=1, refinements=1, mask=WINDOWS)
    own = search(PROMPT, strategy=strategy, pool=pool, images=2, steps=3).ledger.costs
    priced = search(PROMPT, strategy=strategy, pool=pool, images=2, steps=3, as_="sdxl").ledger.costs
    assert pool.info.image == (64, 64)
    assert (own.localize(WINDOWS).flops, priced.localize(WINDOWS).flops) == (9 * 11, 9 * published("sdxl").score)
