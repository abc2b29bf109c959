"""The examples: the strategy passes the conformance suite, and the programs run on the analytic model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import maps
from examples.custom_strategy import RefineBest
from examples.second_chance import SecondChance
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import Plan, Strategy
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.requests import Located, State
from tests.tiny import tiny_backbone


class TestSecondChance(StrategyConformance):
    def strategy(self) -> Strategy:
        return SecondChance()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost:
        return costs.refine() if "localize" in plan.trials else costs.localize() + costs.refine()


class TestCustomStrategy(StrategyConformance):
    def strategy(self) -> Strategy:
        return RefineBest()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost:
        return costs.sample

    def test_the_example_is_short(self) -> None:
        assert len(Path("examples/custom_strategy.py").read_text().splitlines()) <= 40


def test_maps_of_any_model_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    few = replace(backbone.info.defaults, steps=2, t0=1, integrate=0, guidance=1.0)
    monkeypatch.setattr(backbone, "info", replace(backbone.info, defaults=few))
    monkeypatch.setattr(maps, "load_backbone", lambda name: backbone)
    masks = ['{"kind": "error-contrast", "levels": [400], "ratio": 0.9}', "quality"]
    maps.main("a red circle", "tiny", masks, 0.25, 2, 0, tmp_path / "new" / "maps.png")
    with Image.open(tmp_path / "new" / "maps.png") as image:
        assert np.ptp(np.asarray(image.convert("L"))) > 200


def test_maps_show_the_heat_and_the_region_of_each_source() -> None:
    """The region keeps its pixels, the rest is darker; flawed objects have frames in every panel but the first."""
    image = np.random.default_rng(0).integers(100, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((8, 8), np.bool_)
    mask[:3, 5:] = True
    found = Located(mask, mask.astype(np.float32))
    shown = [maps.Sampled("a", State(np.zeros((4, 8, 8), np.float32), 4, 4), image, [2])] * 2
    figure = maps.draw(shown, {"one": [found] * 2, "two": [found] * 2}, {"one": 3, "two": 0}, {"two": 0.625})
    panels = np.reshape(figure.axes, (4, 3))
    assert [one.get_title() for one in panels[0]] == [
        "image\nflawed objects framed",
        "one\n3 rows",
        "two\n0 rows, AUROC 0.62",
    ]
    large = mask.repeat(8, 0).repeat(8, 1)
    for row in (0, 2):
        assert np.array_equal(panels[row, 0].images[0].get_array(), image)
        for column in (1, 2):
            assert np.array_equal(panels[row, column].images[0].get_array(), found.heat)
            region = panels[row + 1, column].images[0].get_array()
            assert np.array_equal(region[large], image[large]) and (region[~large] < 100).all()
    assert [[len(one.patches) for one in line] for line in panels] == [[0, 1, 1], [1, 1, 1]] * 2
    assert panels[1, 0].patches[0].get_xy() == (43, 0)
    assert panels[0, 1].images[0].get_extent() == [-0.5, 63.5, 63.5, -0.5]
