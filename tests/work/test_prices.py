"""What operations cost: sums of counts and prices, and the prices of the published models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lotts_search.errors import BadInput
from lotts_search.work.prices import PUBLISHED, Prices, published
from lotts_search.work.requests import Usage

PRICES = Prices(row=10000.0, decode=1000.0, preview=100.0, encode=10.0, score=1.0)


def test_flops_are_counts_times_prices() -> None:
    usage = Usage(nfe=9, rows=2, images=1, decodes=5, previews=4, encodes=3, scores=7, rewrites=2, device_s=3.0)
    assert PRICES.flops(vars(usage)) == 20000 + 1000 + 400 + 30 + 7
    arrays = {"rows": np.array([1, 0]), "decodes": np.array([0, 2])}
    assert PRICES.flops(arrays).tolist() == [10000, 2000]


def test_published_prices_are_in_the_known_proportions() -> None:
    """A decoding at the size of SDXL costs about 1.55 network rows, a score by ImageReward .02, a tiny decoding .57 TFLOP."""
    sdxl = published("sdxl")
    assert (sdxl.decode / sdxl.row, sdxl.score / sdxl.row) == pytest.approx((1.55, 0.02), abs=0.005)
    assert published("sdxl+tiny") == replace(sdxl, preview=pytest.approx(0.57e12, rel=0.01))


def test_published_models_are_priced_per_denoising_step_and_per_row_of_a_localization() -> None:
    """SDXL is used with guidance, two rows a step, and FLUX.1-schnell without, however many rows were counted."""
    counts = {"rows": 99, "steps": 10, "located": 3}
    assert published("sdxl").flops(counts) == 23 * published("sdxl").row
    assert published("flux").flops(counts) == 13 * published("flux").row
    assert PRICES.flops(counts) == 99 * PRICES.row


@pytest.mark.parametrize(("name", "ratio"), [("sd21", 2.08), ("sdxl", 1.65), ("flux", 1.13)])
def test_svdd_costs_more_than_its_steps_say(name: str, ratio: float) -> None:
    """Per NFE, with a score at every step, in terms of Best-of-N's with one every ten steps."""
    step = {"steps": 1, "decodes": 1, "previews": 1, "scores": 1}
    image = {"steps": 10, "decodes": 1, "scores": 1}
    prices = published(name)
    assert prices.flops(step) / (prices.flops(image) / 10) == pytest.approx(ratio, abs=0.01)


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="sdxl"):
        published("sdx")


@pytest.mark.slow
def test_published_prices_are_those_of_the_published_configurations() -> None:
    from lotts_search.bench.prices import recounted

    assert dict(recounted()) == PUBLISHED
