"""Studies with budgets of FLOPs, and priced as on published models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lotts_search import BadInput, search
from lotts_search.cli.write_report import Wanted, write
from lotts_search.curves import load
from lotts_search.curves.trials import Setup
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.testing import AnalyticPool, analytic_info
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Checking
from lotts_search.work.prices import published
from tests.core.test_confined_costs import INFO as CONFINABLE
from tests.study.test_command import call, use
from tests.study.worlds import YAML, lasting, run, table, world


class Checked(AnalyticPool, Checking):
    """The analytic model; it can be asked what a score of its verifier costs."""


SDXL = published("sdxl")
IMAGE = 8 * 2 * SDXL.row + SDXL.decode + SDXL.score
"""A sample of the analytic model, priced as on SDXL."""
PRICED = YAML.replace("{nfe: [24, 40]}", "{flops: [3.7e14, 65e13]}") + "as: sdxl\n"


def test_each_search_is_the_one_by_itself(tmp_path: Path) -> None:
    run(world(tmp_path, PRICED), tmp_path / "run")
    rows = lasting(tmp_path / "run")
    assert {(row["label"], row["budget_flops"], row["budget_nfe"]) for row in rows} == {
        ("best-of-n", 6.5e14, None),
        *((f"lotts refinements={k}", flops, None) for k in (1, 2) for flops in (3.7e14, 6.5e14)),
    }
    first = [row for row in rows if row["search_id"] == rows[-1]["search_id"]]
    alone = search(
        rows[-1]["prompt"], strategy="lotts", settings=json.loads(rows[-1]["strategy_args"]), flops=rows[-1]["budget_flops"], as_="sdxl",
        seed=rows[-1]["search_seed"], pool=AnalyticPool(),
    )  # fmt: skip
    assert [row["flops"] for row in first] == [trial.flops for trial in alone.trials]
    assert sum(row["flops"] for row in first) <= rows[-1]["budget_flops"]
    said = json.loads((tmp_path / "run" / "study.json").read_text())
    assert said["models"][0]["as"] == "sdxl" and said["searches"][0]["budget_flops"] == 6.5e14


def test_smaller_budgets_are_prefixes_of_nested_searches(tmp_path: Path) -> None:
    """The last image counts only where its score is paid for, too."""
    yaml = PRICED.replace("3.7e14", f"{3 * IMAGE - SDXL.score / 2}, {3 * IMAGE}")
    run(world(tmp_path, yaml), tmp_path / "run")
    run(
        world(tmp_path / "apart", yaml.replace("- best-of-n", "- {strategy: best-of-n, nested: false}")),
        tmp_path / "single",
    )
    nested, single = load(tmp_path / "run"), load(tmp_path / "single")
    for flops, images in ((3 * IMAGE - SDXL.score / 2, 2), (3 * IMAGE, 3), (6.5e14, 5)):
        setup = nested.find("best-of-n", flops=flops)
        assert nested.spent(setup, "images") == images == single.spent(single.find("best-of-n", flops=flops), "images")


def test_prices_and_budgets_of_flops_are_part_of_a_search(tmp_path: Path) -> None:
    def ids(more: str) -> list[str]:
        return [task.search_id for task in tasks_of(read_study(world(tmp_path, YAML + more)))]

    assert len({*ids(""), *ids("as: sdxl\n"), *ids("as: flux\n")}) == 3 * len(ids(""))


def test_models_may_have_prices_of_their_own(tmp_path: Path) -> None:
    models = "models:\n- {model: ./analytic, as: flux}\n- {model: ./analytic, label: other}\nas: sd21\n"
    study = read_study(world(tmp_path, YAML.replace("model: ./analytic\n", models)))
    assert [model.priced_as for model in study.models] == ["flux", "sd21"]
    with pytest.raises(BadInput, match=r"line 8: unknown as 'sdx'.*sdxl"):
        read_study(world(tmp_path, YAML + "as: sdx\n"))
    with pytest.raises(BadInput, match=r"which costs 8 NFE and 1 image and 1\.188e\+14 FLOPs"):
        tasks_of(read_study(world(tmp_path, PRICED.replace("3.7e14", "1e14"))))


def test_limits_of_one_item_hold_together(tmp_path: Path) -> None:
    yaml = YAML.replace("{nfe: [24, 40]}", "[{nfe: 40, flops: 1e5}, {flops: [2e5, 3e5]}, {images: 2, flops: 9e4}]")
    limits = read_study(world(tmp_path, yaml)).limits
    assert [str(limit) for limit in limits] == [
        "40 NFE and 1e+05 FLOPs", "2e+05 FLOPs", "3e+05 FLOPs", "2 images and 9e+04 FLOPs",
    ]  # fmt: skip


@pytest.mark.parametrize("info", [analytic_info(), CONFINABLE], ids=["whole", "confined"])
@pytest.mark.parametrize("yaml", [PRICED, PRICED.replace("as: sdxl\n", "").replace("3.7e14, 65e13", "6e4, 1e5")])
def test_the_dry_run_says_the_costs_in_all_currencies(
    yaml: str, info: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lotts_search.core.costs.PAYS", 1)
    use(monkeypatch, Checked(info))
    file, out = world(tmp_path, yaml), tmp_path / "run"
    assert call("study", file, "--out", out, "--dry-run", "--json") == 0
    lines = {line["label"]: line for line in json.loads(capsys.readouterr().out)["lines"]}
    assert call("study", file, "--out", out) == 0
    for label, line in lines.items():
        rows = [row for row in lasting(out) if row["label"] == label]
        for currency in ("nfe", "images", "flops"):
            assert line[currency] == pytest.approx(sum(row[currency] for row in rows), rel=1e-12)
    capsys.readouterr()
    assert call("study", world(tmp_path, yaml + "seeds: [1]\n"), "--dry-run") == 0
    assert "FLOPs" in capsys.readouterr().out


def test_a_study_of_flops_is_drawn_over_flops(tmp_path: Path) -> None:
    run(world(tmp_path, PRICED), tmp_path / "run")
    found = write(Wanted([tmp_path / "run"], figures=False), Console(quiet=True)).found
    assert (found.cost, found.prices) == ("flops", "sdxl")
    assert found.axes["flops"].endswith("at the prices of sdxl")
    other = write(Wanted([tmp_path / "run"], cost="nfe", prices="flux", figures=False), Console(quiet=True)).found
    assert (other.cost, other.prices) == ("nfe", "flux")
    setup = Setup("analytic", "lotts refinements=1", flops=6.5e14)
    spent = {line.setup: line.costs["flops"] for line in found.lines}[setup]
    assert spent <= 6.5e14
    assert spent == pytest.approx(load(tmp_path / "run", price=SDXL.flops).spent(setup, "flops"))
    text = (tmp_path / "run" / "report" / "results.csv").read_text()
    assert "budget_flops" in text and str(6.5e14) in text
    assert "budget_flops" in table(tmp_path / "run").column_names
