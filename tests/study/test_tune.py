"""``lotts-search tune``: which settings are tried, on which prompts, and which win."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from lotts_search import BadInput, registry
from lotts_search.core.space import Span, value_at
from lotts_search.study.tune import points, ranked, space_of, study_of
from lotts_search.testing import AnalyticPool
from tests.study.test_command import call, use
from tests.study.worlds import world


def test_points_cover_every_range_evenly_and_a_larger_number_continues_a_smaller_one() -> None:
    space = {"a": Span(1.0, 100.0, log=True), "b": (1, 2), "c": Span(-1.0, 1.0)}
    found = points(space, 33, seed=3)
    assert found[0] == {} and found[:9] == points(space, 9, seed=3) != points(space, 9, seed=4)
    drawn = found[1:]
    assert 12 <= sum(one["a"] < 10 for one in drawn) <= 20 and 12 <= sum(one["c"] < 0 for one in drawn) <= 20
    assert all(1 <= one["a"] <= 100 and -1 <= one["c"] <= 1 for one in drawn)
    assert Counter(one["b"] for one in drawn).most_common()[-1][1] >= 12
    assert len(points({"b": (1, 2), "c": ("x", "y")}, 99, seed=0)) == 1 + 4
    assert [value_at(Span(1, 100, log=True), share) for share in (0, 0.5, 1)] == [1, 10, 100]


@pytest.mark.parametrize("name", list(registry.strategies()))
def test_spaces_name_settings_and_only_values_that_work(name: str) -> None:
    found = registry.resolve_strategy(name)
    for key, values in found.space.items():
        for share in (0.0, 0.25, 0.5, 0.75, 0.999):
            registry.make_strategy(name, {key: value_at(values, share)})
    if found.space:
        for settings in points(found.space, 40, seed=0):
            registry.make_strategy(name, settings).check_choices()


def test_the_space_can_be_fixed_and_extended() -> None:
    assert list(space_of("particle", {"temper": [0, 0.008]}, fixed=["interval", "adaptive"])) == [
        "strength",
        "potential",
        "resampling",
        "funnel",
        "ess",
        "temper",
    ]
    with pytest.raises(BadInput, match=r"unknown setting of strategy 'svdd': 'kids'.*children"):
        space_of("svdd", {"kids": [1]})
    with pytest.raises(BadInput, match="best-of-n has no settings left to tune: vary some of n, template"):
        space_of("best-of-n", {})


@pytest.mark.parametrize("prompts", ["shapes-test", "shapes-test/dense", "geneval", "drawbench"])
def test_test_prompts_are_refused(prompts: str) -> None:
    with pytest.raises(BadInput, match=f"{prompts} is for reporting results: tune on shapes-tune, or on a file"):
        study_of(
            "svdd", [{}], {}, model={"model": "shapes-sd"}, verifier=None, metrics=[], prompts=prompts, count=2, seed=0,
            budget={"nfe": 30},
        )  # fmt: skip


def test_trials_are_ranked_by_their_means_on_common_prompts() -> None:
    def search(label: str, prompt: str, score: float, status: str = "done") -> dict[str, object]:
        return {"label": label, "prompt_id": prompt, "score": score, "metrics": {"m": -score}, "status": status}

    scores = {"trial 0": [0.1, 0.5, 9.0], "trial 1": [0.4, 0.6], "trial 2": [0.0, 0.2, 0.0]}
    searches = [search(label, f"p{i}", score) for label, row in scores.items() for i, score in enumerate(row)]
    searches.append(search("trial 1", "p2", 5.0, "failed"))
    trials = [{}, {"a": 1}, {"a": 2}]
    found = ranked(trials, searches, None)
    assert [one.settings for one in found] == [{"a": 1}, {}, {"a": 2}]
    assert found[0].mean == pytest.approx(0.5) and found[1].difference == (0, 0)
    difference = np.array([0.3, 0.1])
    assert found[0].difference == pytest.approx((0.2, difference.std(ddof=1) / np.sqrt(2)))
    assert [one.settings for one in ranked(trials, searches, "m")] == [{"a": 2}, {}, {"a": 1}]
    assert ranked([*trials, {"a": 3}], searches, None) == []


def test_another_model_needs_tuning_prompts_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = AnalyticPool()
    use(monkeypatch, pool)
    world(tmp_path)
    assert call("tune", "svdd", "--model", tmp_path / "analytic", "--nfe", 40, "--out", tmp_path / "tuned") == 2
    assert "analytic has no tuning prompts of its own: name a file, --prompts FILE" in capsys.readouterr().err
    assert not pool.asked and not (tmp_path / "tuned").exists()


def test_tuning_runs_resumes_and_prints_settings_to_paste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = AnalyticPool()
    use(monkeypatch, pool)
    world(tmp_path)
    prompts = tmp_path / "mine.txt"
    prompts.write_text("red star\nblue ring\ngreen cross\n")
    out = tmp_path / "tuned"
    words = ("tune", "svdd", "--model", tmp_path / "analytic", "--prompts", prompts, "--count", 3, "--nfe", 40)
    words = (*words, "--set", "alpha=0", "--out", out)
    assert call(*words, "--trials", 3, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    trials = said["trials"]
    assert len(trials) == 3 and all(one["settings"]["alpha"] == "0" for one in trials)
    assert [one["mean"] for one in trials] == sorted((one["mean"] for one in trials), reverse=True)
    asked = len(pool.asked)
    assert call(*words, "--trials", 5) == 0  # there are the defaults and four numbers of children
    printed = capsys.readouterr().out
    assert len(pool.asked) > asked
    pasted = yaml.safe_load(printed[printed.index("  - {strategy") :].splitlines()[0])
    (entry,) = pasted
    assert entry["strategy"] == "svdd"
    registry.make_strategy("svdd", entry["settings"])
    asked = len(pool.asked)
    assert call(*words, "--trials", 5) == 0
    assert len(pool.asked) == asked, "a finished tuning runs nothing again"
    assert call("tune", "best-of-n", "--out", out) == 2
