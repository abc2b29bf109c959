from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from lotts_search.bench.loops import best_of
from lotts_search.bench.ratios import draw, row
from lotts_search.bench.setting import Ratio, Setting, of
from lotts_search.cli import main
from lotts_search.errors import LottsError


def test_a_ratio_is_the_median_and_meets_its_demand_or_not() -> None:
    assert Ratio("a", [1.2, 0.9, 1.0], least=1.0).met and not Ratio("a", [1.2, 0.9, 1.0], least=1.01).met
    assert Ratio("a", [1.2, 0.9, 1.0], most=1.0).met and not Ratio("a", [1.2, 0.9, 1.0], most=0.99).met
    assert row(Ratio("a ÷ b", [1.2, 0.9, 1.0], least=1.01)) == "| a ÷ b | 1.000 | 0.900 to 1.200 | ≥ 1.01 | not met |"
    assert row(Ratio("c", [0.5], most=1)) == "| c | 0.500 |  | ≤ 1 | met |" and row(Ratio("d", [2])).endswith("|  |  |")


def test_actions_alternate_and_their_time_is_divided_by_their_work() -> None:
    """By a clock that only the actions move; the first round warms up."""
    time, order = 0.0, []

    def action(name: str, seconds: float, work: float) -> Any:
        def go(number: int) -> float:
            nonlocal time
            time += seconds if number >= 0 else 100
            order.append((number, name))
            return work

        return go

    backbone: Any = None
    setting = Setting("none", backbone, "none", rounds=2)
    taken = setting.alternate({"one": action("one", 6, 2), "two": action("two", 6, 3)}, lambda: time)
    assert taken == {"one": [3, 3], "two": [2, 2]} and of(taken["one"], taken["two"]) == [1.5, 1.5]
    assert order == [(-1, "one"), (-1, "two"), (0, "two"), (0, "one"), (1, "one"), (1, "two")]


@pytest.mark.parametrize(("batch", "calls"), [(1, [[0], [1], [2], [3], [4]]), (3, [[0, 1, 2], [3, 4]])])
def test_a_loop_over_a_pipeline_returns_the_best_image(batch: int, calls: list[list[int]]) -> None:
    """Images are as bright as their seed's turn, and the verifier prefers that of seed 3."""
    asked: list[list[int]] = []
    brightness = [0.1, 0.2, 0.3, 0.8, 0.4]

    def pipeline(prompt: str, num_images_per_prompt: int, generator: list[Any], output_type: str, **how: int) -> Any:
        seeds = [one.initial_seed() for one in generator]
        assert (prompt, output_type, how, num_images_per_prompt) == ("red", "np", {"steps": 2}, len(seeds))
        asked.append(seeds)
        return SimpleNamespace(images=np.stack([np.full((2, 2, 3), brightness[seed]) for seed in seeds]))

    def score(prompts: list[str], images: Any) -> Any:
        assert prompts == ["red"] * len(images) and images.dtype == np.uint8
        return images.mean((1, 2, 3))

    verifier: Any = SimpleNamespace(score=score)
    found = best_of(pipeline, verifier, "red", 5, batch, steps=2)
    assert asked == calls and np.array_equal(found, np.full((2, 2, 3), 204))


def test_the_plot_names_all_ratios(tmp_path: Path) -> None:
    path = tmp_path / "ratios.svg"
    draw([Ratio("first", [1.0, 2.0], least=0.9), Ratio("second", [0.5], most=1.1)], path)
    comments = path.read_text()
    assert ElementTree.fromstring(comments).tag.endswith("svg") and "first" in comments and "second" in comments


def test_other_parts_and_models_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["--only", "sound"], "engine"), (["--model", "shapes-flux"], "Stable Diffusion")):
        with pytest.raises((SystemExit, LottsError)) as stopped:
            main(["bench", "ratios", *words])
        assert getattr(stopped.value, "code", 2) == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_ratio(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    parts = ("engine", "search", "searches", "fill", "localization", "ray", "memory", "confined")
    words = [word for part in parts for word in ("--only", part)]
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "ratios", *words, "--rounds", "1", "--svg", str(tmp_path / "ratios.svg")])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 2 + 6 + 6 + 1 + 1 + 1 + 1 + 12 and all(float(cells[1]) > 0 for cells in rows)
    assert (tmp_path / "ratios.svg").stat().st_size > 1000
