"""Settings that would do nothing are refused: the guidance weight and the negative prompt."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lotts_search.errors import BadInput
from lotts_search.work.model import Defaults, ModelInfo
from lotts_search.work.prices import Prices
from lotts_search.work.requests import Sampling

INFO = ModelInfo(
    "fake", "fake", (2, 4, 4), (8, 8), Prices(row=10.0), Defaults(steps=6, guidance=1.0, t0=3, integrate=1)
)
DISTILLED = replace(INFO, embedded_guidance=True)


@pytest.mark.parametrize("guidance", [0.999, 0.5, 0.0, -0.0, -3.0, math.nan, math.inf])
def test_a_guidance_weight_that_would_mean_1_is_refused(guidance: float) -> None:
    with pytest.raises(BadInput, match="guidance must be"):
        Sampling.of(INFO, "a star", guidance=guidance)
    with pytest.raises(BadInput, match="guidance must be"):
        Sampling.of(replace(INFO, defaults=replace(INFO.defaults, guidance=guidance)), "a star")


@pytest.mark.parametrize(("guidance", "guided"), [(1.0, False), (1.001, True), (1, False), (7.5, True)])
def test_a_guidance_weight_of_1_is_unguided_and_above_it_takes_two_rows(guidance: float, guided: bool) -> None:
    assert Sampling.of(INFO, "a star", guidance=guidance).guided is guided


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.5])
def test_an_embedded_weight_may_be_below_1_but_not_below_0(guidance: float) -> None:
    assert Sampling.of(DISTILLED, "a star", guidance=guidance).guidance == guidance
    with pytest.raises(BadInput, match="0 or more, not -1"):
        Sampling.of(DISTILLED, "a star", guidance=-1.0)


@pytest.mark.parametrize("negative", ["blurry", " ", "-"])
def test_a_negative_prompt_that_would_not_be_used_is_refused(negative: str) -> None:
    assert Sampling.of(INFO, "a star", guidance=2.0, negative=negative).negative == negative
    for guidance in (None, 1.0, 1):
        with pytest.raises(BadInput, match="would not be used: it needs guidance above 1"):
            Sampling.of(INFO, "a star", guidance=guidance, negative=negative)
    with pytest.raises(BadInput, match="takes no negative prompt"):
        Sampling.of(DISTILLED, "a star", guidance=3.0, negative=negative)
