"""The mask source that reads the trajectory of an image: its map, what replaces it where there is none, and its cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import rankdata

from lotts_search import BadInput, search
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Costs
from lotts_search.engine.engine import Engine
from lotts_search.errors import Notice
from lotts_search.localization.locate import locate
from lotts_search.localization.select import unit
from lotts_search.strategies.lotts import LoTTS
from lotts_search.testing import AnalyticPool, analytic_info
from lotts_search.testing.conformance import tree
from lotts_search.work.masks import (
    ErrorContrastMask,
    FusionMask,
    MaskSource,
    QualityMask,
    RandomMask,
    TrajectoryMask,
    mask_from_dict,
    mask_to_dict,
)
from lotts_search.work.requests import Bytes, Check, Locate, Sampling, State
from tests.scripted import run as search_by
from tests.tiny import run, tiny_backbone

SAMPLING = Sampling("a red circle", 4, 3.0)
TWO_ROWS = ErrorContrastMask(levels=(400,))
FUSED = FusionMask(sources=(TWO_ROWS, TrajectoryMask()), weights=(2, 1))
COSTS = Costs.of(analytic_info(), Sampling.of(analytic_info(), "a"))
IMAGE: Bytes = np.full((6, 6, 3), 90, np.uint8)


def work(state: State, source: MaskSource) -> Locate:
    return Locate(5, ("seed 0",), state, SAMPLING, source)


def test_it_selects_where_the_smoothed_change_is_highest(finished: State) -> None:
    source = TrajectoryMask(ratio=0.25, smooth=0)
    (answer,) = run(Engine(tiny_backbone(), 2), work(finished, source))
    assert answer.located is not None and (answer.usage.rows, answer.usage.nfe) == (0, 0)
    assert finished.change is not None
    highest = np.argsort(-finished.change.ravel())[:16]
    assert answer.located.mask.sum() == 16 and answer.located.mask.ravel()[highest].all()
    dot = np.zeros((8, 8), np.float32)
    dot[4, 4] = 1
    smoothed = locate(tiny_backbone(), work(replace(finished, change=dot), TrajectoryMask(smooth=0.8))).heat
    want = unit(ndimage.gaussian_filter(dot, 0.8, truncate=20, mode="constant"))
    assert np.abs(smoothed - want)[2:7, 2:7].max() < 0.01  # weights are renormalised at the borders


def test_it_fuses_by_rank_with_the_network(finished: State) -> None:
    (answer,) = run(Engine(tiny_backbone(), 8), work(finished, FUSED))
    parts = [locate(tiny_backbone(), work(finished, part)).heat for part in FUSED.sources]
    ranks = [(rankdata(part).reshape(8, 8) - 1) / 63 for part in parts]
    assert answer.located is not None
    assert np.allclose(answer.located.heat, unit(((2 * ranks[0] + ranks[1]) / 3).astype(np.float32)), atol=0.02)
    assert (answer.usage.rows, answer.usage.nfe) == (2, 1)


def test_without_a_trajectory_the_method_refuses(finished: State) -> None:
    future = (engine := Engine(tiny_backbone(), 2)).submit(work(replace(finished, change=None), TrajectoryMask()))
    while engine.tick():
        pass
    with pytest.raises(BadInput, match="needs an image sampled from pure noise"):
        future.result(0)


def test_a_check_of_the_model_accepts_it() -> None:
    for source in (TrajectoryMask(), FUSED):
        assert run(Engine(tiny_backbone(), 2), Check(SAMPLING, "", source))[0].note == ""


@pytest.mark.parametrize(
    ("source", "used"),
    [
        (TWO_ROWS, TWO_ROWS),
        (TrajectoryMask(0.3), replace(analytic_info().defaults.mask, ratio=0.3)),  # type: ignore[type-var]
        (TrajectoryMask(0.3, fallback=QualityMask()), QualityMask(0.3)),
        (TrajectoryMask(fallback=TrajectoryMask()), analytic_info().defaults.mask),
        (FUSED, FusionMask(sources=(TWO_ROWS,), weights=(2,))),
        (
            FusionMask(sources=(TrajectoryMask(fallback=RandomMask()), TWO_ROWS)),
            FusionMask(sources=(RandomMask(), TWO_ROWS), weights=(1, 1)),
        ),
        (FusionMask(0.2, (TrajectoryMask(),)), replace(analytic_info().defaults.mask, ratio=0.2)),  # type: ignore[type-var]
        (FusionMask(0.2, (TrajectoryMask(), TWO_ROWS), (1, 0)), replace(analytic_info().defaults.mask, ratio=0.2)),  # type: ignore[type-var]
    ],
)
def test_what_replaces_it_where_there_is_no_trajectory(source: MaskSource, used: MaskSource) -> None:
    assert COSTS.mask_source(source) is source
    assert replace(COSTS, traced=False).mask_source(source) == used
    assert replace(COSTS, traced=False).localize(source).nfe == used.rows() / 2


def test_a_default_that_is_a_trajectory_needs_a_fallback_for_given_images() -> None:
    costs = replace(COSTS, traced=False, defaults=replace(COSTS.defaults, mask=TrajectoryMask()))
    with pytest.raises(
        BadInput, match="trajectory needs the image's trajectory, which is not known: give it a fallback"
    ):
        costs.mask_source()


def test_images_of_one_step_have_no_trajectory() -> None:
    info = analytic_info()
    assert (
        not Costs.of(info, Sampling.of(info, "a", steps=1)).traced and not Costs.of(info, SAMPLING, image=True).traced
    )


def test_the_search_is_free_of_localization_costs_and_resumes(tmp_path: Path) -> None:
    strategy = LoTTS(mask=TrajectoryMask(ratio=0.3), depth=2)

    def whole(pool: AnalyticPool) -> Any:
        with pool:
            return search("a", strategy=strategy, pool=pool, nfe=80, journal=tmp_path / "journal")

    first, again = AnalyticPool(), AnalyticPool()
    one, other = whole(first), whole(again)
    assert tree(one) == tree(other) and not again.asked
    located = [trial for trial in one.trials if trial.kind == "localize"]
    # Images and their refinements, all with a map of their own.
    assert len({trial.lineage for trial in located}) > 2
    assert all((trial.nfe, trial.rows, trial.error) == (0, 0, "") for trial in located)
    assert all(work.state.change is not None for work in first.asked if isinstance(work, Locate))
    assert one.ledger.nfe == strategy.plan(Budget(nfe=80), COSTS).nfe


def test_a_given_image_is_located_by_the_fallback_which_is_charged_and_reported() -> None:
    pool = AnalyticPool()
    strategy = LoTTS(mask=TrajectoryMask(ratio=0.3, fallback=ErrorContrastMask(levels=(200, 400))), depth=2)
    with pytest.warns(Notice, match="trajectory of the image is not known: error-contrast replaces trajectory"):
        result = search("a", strategy=strategy, pool=pool, nfe=40, image=IMAGE)
    located = [trial for trial in result.trials if trial.kind == "localize"]
    assert len(located) > 1  # the refinements of a given image have no trajectory either
    assert all((trial.nfe, trial.rows) == (2, 4) for trial in located)
    assert {trial.error for trial in located} == {
        "the trajectory of the image is not known: error-contrast replaces trajectory"
    }
    used = ErrorContrastMask(0.3, (200, 400))
    assert all(asked.source == used for asked in pool.asked if isinstance(asked, Locate))
    assert strategy.least(Costs.of(pool.info, result.sampling, image=True), image=True).nfe == 2 + 5


def test_samples_beside_a_given_image_have_their_trajectory() -> None:
    async def script(handle: Any) -> None:
        encoded, sampled = await handle.encode(IMAGE), await handle.sample(0)
        for candidate in (encoded, sampled):
            await handle.localize(candidate, FUSED)
            await handle.localize(candidate, TrajectoryMask())

    trials = [trial for trial in search_by(script).trials if trial.kind == "localize"]
    assert [trial.rows for trial in trials] == [2, 2, 2, 0]
    assert [bool(trial.error) for trial in trials] == [True, True, False, False]
    assert trials[0].error.endswith(": fusion of error-contrast replaces fusion of error-contrast, trajectory")


def test_a_fallback_survives_json_and_its_mistakes_are_named() -> None:
    source = FusionMask(sources=(TrajectoryMask(fallback=ErrorContrastMask(levels=(100,))), TrajectoryMask()))
    assert mask_from_dict(json.loads(json.dumps(mask_to_dict(source)))) == source
    assert mask_from_dict({"kind": "trajectory", "fallback": "quality"}) == TrajectoryMask(fallback=QualityMask())
    with pytest.raises(BadInput, match="unknown mask kind 'qualty'; did you mean 'quality'"):
        mask_from_dict({"kind": "trajectory", "fallback": "qualty"})
    with pytest.raises(BadInput, match="described by its kind, or by its kind and settings, not by 3"):
        mask_from_dict({"kind": "trajectory", "fallback": 3})
