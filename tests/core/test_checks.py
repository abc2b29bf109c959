"""What a search refuses before its first trial."""

from __future__ import annotations

import numpy as np
import pytest

from lotts_search import search
from lotts_search.core.strategy import AttentionMask, Strategy
from lotts_search.errors import BadInput, Notice
from lotts_search.strategies.adaptive_lotts import AdaptiveLoTTS
from lotts_search.strategies.beam_in_mask import BeamInMask
from lotts_search.strategies.best_of_n import BestOfN
from lotts_search.strategies.evolutionary import Evolutionary
from lotts_search.strategies.lotts import LoTTS
from lotts_search.strategies.more_steps import MoreSteps
from lotts_search.strategies.particle import Particle
from lotts_search.strategies.random_search import RandomSearch
from lotts_search.strategies.rollover_budget import RolloverBudget
from lotts_search.strategies.search_over_paths import SearchOverPaths
from lotts_search.strategies.svdd import SVDD
from lotts_search.strategies.tree_search import DiffusionTreeSearch
from lotts_search.strategies.ttgen import TTGen
from lotts_search.strategies.zero_order import ZeroOrder
from lotts_search.testing import AnalyticPool

NAN = float("nan")
LOCALIZED = (LoTTS, AdaptiveLoTTS, BeamInMask, Particle)
WRONG = [
    ({"start": 8}, r"start must be within 0\.\.7, not 8"),
    ({"start": -1}, r"start must be within 0\.\.7, not -1"),
    ({"start": 7, "integrate": 5}, r"integrate must be within 0\.\.1 for refinements that start at step 7 of 8, not 5"),
    ({"integrate": 6}, r"integrate must be within 0\.\.5 .*step 3 of 8, not 6"),
    ({"integrate": -1}, r"integrate must be within 0\.\.5"),
    ({"temporal": False, "integrate": 9}, r"integrate must be within 0\.\.8 .*step 0 of 8"),
    ({"ratio": 0.0}, "ratio must be above 0 and at most 1, not 0"),
    ({"ratio": NAN}, "ratio must be above 0 and at most 1, not nan"),
    ({"mask": AttentionMask(), "ratio": 1.5}, "ratio must be above 0 and at most 1, not 1.5"),
    ({"propagate": False}, "unknown setting of ErrorContrastMask: 'propagate'"),
]


def refused(strategy: type[Strategy], settings: dict[str, object], message: str, **arguments: object) -> None:
    with AnalyticPool() as pool:
        with pytest.raises(BadInput, match=message):
            search("red star", strategy=strategy(**settings), pool=pool, **{"nfe": 100} | arguments)  # type: ignore[arg-type]
        assert pool.asked == []


@pytest.mark.parametrize("strategy", LOCALIZED)
@pytest.mark.parametrize(("settings", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_localized_strategies_refuse_what_does_not_fit_the_schedule(strategy, settings, message):
    refused(strategy, settings, message)
    if "mask" not in settings:
        refused(strategy, settings | {"mask": None}, message, image=np.zeros((6, 6, 3), np.uint8))


@pytest.mark.parametrize(
    ("strategy", "settings", "message"),
    [
        (SearchOverPaths, {"start": 8}, r"start must be within 0\.\.7, not 8"),
        (SearchOverPaths, {"start": 20}, r"start must be within 0\.\.7, not 20"),
        (TTGen, {"injection": 7}, "injection must be a share of the steps, 0.0001 or more and below 1, not 7"),
        (AdaptiveLoTTS, {"unsure": 1.5}, r"unsure must be within 0\.\.1, not 1.5"),
        (AdaptiveLoTTS, {"unsure": NAN}, r"unsure must be within 0\.\.1, not nan"),
        (BestOfN, {"n": 0}, "n must be 1 or more, not 0"),
        (BestOfN, {"n": -3}, "n must be 1 or more, not -3"),
        (BestOfN, {"template": "  "}, "template must not be empty"),
        (DiffusionTreeSearch, {"strength": NAN}, "strength must be a number above 0, not nan"),
        (DiffusionTreeSearch, {"strength": float("inf")}, "strength must be a number above 0, not inf"),
        (DiffusionTreeSearch, {"exploration": NAN}, "exploration must be 0 or more, not nan"),
        (Particle, {"strength": NAN}, "strength must be 0 or more, not nan"),
        (Particle, {"first": 0.9, "last": 0.1}, r"first and last must be within 0\.\.1"),
        (Particle, {"interval": 0}, "interval must be a share of the trajectory, 0.0001 or more and below 1, not 0"),
        (Particle, {"interval": 5}, r"interval must be a share .* not 5: 5 of 50 steps are interval=0\.1"),
        (
            Particle,
            {"interval": 1e-300},
            "interval must be a share of the trajectory, 0.0001 or more and below 1, not 1e-300",
        ),
        (Particle, {"funnel": 1e-300}, "funnel must be a share of the particles, 0.0001 or more"),
        (Particle, {"temper": 10**9}, "temper must be within 0..1, not 1000000000"),
        (DiffusionTreeSearch, {"growth": 10**9}, "growth must be within 0..1, not 1000000000"),
        (BestOfN, {"n": 100_001}, "n must be within 1..100000, not 100001"),
        (BeamInMask, {"interval": 3}, "interval must be a share of a refinement, 0.0001 or more and below 1, not 3"),
        (
            DiffusionTreeSearch,
            {"interval": 1},
            "interval must be a share of the trajectory, 0.0001 or more and below 1, not 1",
        ),
        (Evolutionary, {"beta": NAN}, r"beta must be within 0\.\.1, not nan"),
        (Evolutionary, {"eta": -0.5}, "eta must be 0 or more, not -0.5"),
        (ZeroOrder, {"tau": NAN}, r"tau must be within -1\.\.1, not nan"),
        (ZeroOrder, {"eta": NAN}, "eta must be 0 or more, not nan"),
        (SVDD, {"alpha": NAN}, "alpha must be 0 or more, not nan"),
        (RolloverBudget, {"quota": 0}, "quota must be 1 or more"),
        (MoreSteps, {"most": 0}, "most must be 1 or more"),
        (RandomSearch, {"growth": float("inf")}, "growth must be 1 or more, not inf"),
    ],
)
def test_strategies_refuse_settings_that_cannot_work(strategy, settings, message):
    refused(strategy, settings, message)


def test_the_greatest_settings_that_fit_are_accepted():
    for strategy in (
        LoTTS(start=7, integrate=1),
        LoTTS(temporal=False, start=99, integrate=8),
        LoTTS(holistic=False, integrate=99),
        SearchOverPaths(start=7),
        TTGen(injection=0.99),
        RandomSearch(growth=1e300),
    ):
        with AnalyticPool() as pool:
            assert search("red star", strategy=strategy, pool=pool, nfe=60).image is not None, strategy


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Particle(first=0.9, last=0.9), "particle: there is no checkpoint between steps 0 and 8: nothing is steered"),
        (Particle(local=True, start=6), "particle: there is no checkpoint between steps 6 and 8: nothing is steered"),
        (BeamInMask(interval=0.9), "beam-in-mask: refinements of 5 steps have no selection at interval=0.9"),
        (
            DiffusionTreeSearch(interval=0.9),
            "tree-search: at interval=0.9 a trajectory of 8 steps has no state to branch",
        ),
    ],
)
def test_a_setting_without_effect_is_reported(strategy, message):
    with AnalyticPool() as pool, pytest.warns(Notice, match=message):
        search("red star", strategy=strategy, pool=pool, nfe=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 2**63}, "seed must be a whole number within -9223372036854775808..9223372036854775807"),
        ({"seed": -(2**63) - 1}, "seed must be a whole number"),
        ({"seed": 10**30}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number .* not 1.5"),
        ({"seed": "1"}, "seed must be a whole number .* not '1'"),
        ({"workers": 0}, "workers must be a whole number within 1.."),
        ({"steps": 2.5}, "steps must be a whole number within 1..10000, not 2.5"),
        ({"steps": 10**8}, "steps must be a whole number within 1..10000, not 100000000"),
        ({"steps": NAN}, "steps must be a whole number within 1"),
        ({"images": 1.5}, "images must be a whole number, not 1.5"),
        ({"target": NAN}, "target must be a number, not nan"),
        ({"prompt": "a\0b"}, "prompt: a text holds a NUL"),
        ({"prompt": "a\udc80"}, "prompt: .*surrogate"),
        ({"negative": "\udc80"}, "negative: .*surrogate"),
    ],
)
def test_arguments_out_of_range_are_refused_before_any_work(arguments, message):
    with AnalyticPool() as pool:
        with pytest.raises(BadInput, match=message):
            search(**{"prompt": "red star", "pool": pool} | arguments)
        assert pool.asked == []


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), np.int64(5)])
def test_all_seeds_of_64_bits_reach_the_table(seed):
    with AnalyticPool() as pool:
        table = search("red star", pool=pool, strategy="best-of-n", images=1, seed=seed).to_table()
    assert table["search_seed"].to_pylist() == [int(seed)] * table.num_rows


@pytest.mark.parametrize("budget", [{"images": 10**8}, {"nfe": 1e300}, {"nfe": 1e9, "images": 10**30}])
def test_a_budget_that_no_memory_can_hold_is_refused_at_once(budget: dict[str, float]) -> None:
    with AnalyticPool() as pool, pytest.raises(BadInput, match="a search keeps all of its images: at most 1000000"):
        search("red", strategy="best-of-n", pool=pool, **budget)
