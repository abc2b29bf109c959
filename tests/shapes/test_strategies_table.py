"""The table of all strategies: searches in parts, what they share, and the sums."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lotts_search import BadInput, search
from lotts_search.curves.intervals import interval
from lotts_search.shapes.measure import standings, strategies
from lotts_search.shapes.measure.standings import Record
from lotts_search.shapes.world.scene import Scene, scenes
from lotts_search.testing import AnalyticPool
from lotts_search.work.requests import Bytes

LOTTS, BEST = "lotts refinements=1", "best-of-n"


def brightness(image: Bytes, scene: Scene) -> tuple[float, bool]:
    return float(image.mean() / 255), bool(image.min() > 127)


def job(folder: Path, **more) -> strategies.Job:
    return strategies.Job(
        **{"model": "analytic", "entries": (BEST, LOTTS), "budgets": (16.0, 40.0), "split": "tune", "prompts": 4,
           "numbers": (0, 1, 2, 3), "folder": folder, "file": "analytic-0.jsonl"} | more
    )  # fmt: skip


def run(one: strategies.Job) -> tuple[list[Record], AnalyticPool]:
    with AnalyticPool() as pool:
        asyncio.run(strategies.searches(pool, one, brightness))
    return standings.read(one.folder), pool


def test_each_record_is_a_search_of_its_own_though_best_of_n_shares_its_images(tmp_path):
    records, _ = run(job(tmp_path))
    assert len({r.key for r in records}) == len(records) == 2 * 2 * 4
    for record in records:
        name, settings = strategies.parse(record.entry)
        with AnalyticPool() as pool:
            scene = scenes("tune", 4, seed=6)[record.prompt]
            alone = search(
                scene.caption, strategy=name, settings=settings, pool=pool, nfe=record.budget, seed=record.prompt
            )
        assert (record.reward, record.nfe, record.images) == (alone.score, alone.ledger.nfe, alone.ledger.images)
        assert (record.quality, record.perfect) == brightness(alone.image, scene)


def test_what_has_a_record_is_not_searched_again(tmp_path):
    before, pool = run(job(tmp_path, numbers=(0, 1)))
    made = len(pool.asked)
    again, pool = run(job(tmp_path, numbers=(0, 1)))
    assert again == before and pool.asked == []
    (tmp_path / "twice.jsonl").write_text((tmp_path / "analytic-0.jsonl").read_text())
    assert standings.read(tmp_path) == before
    more, pool = run(job(tmp_path, file="analytic-1.jsonl"))
    assert len(more) == 2 * len(before) and made / 2 < len(pool.asked) < 2 * made
    with (tmp_path / "analytic-0.jsonl").open("a") as file:
        file.write('{"model": "ana')
    assert standings.read(tmp_path) == more


def test_a_strategy_that_fails_or_cannot_begin_does_not_end_the_others(tmp_path):
    records, _ = run(job(tmp_path, entries=(LOTTS, "more-steps"), budgets=(4.0, 40.0)))
    failed = [r for r in records if r.error]
    assert len(records) == 16
    assert {(r.entry, r.budget) for r in failed} == {(LOTTS, 4.0), ("more-steps", 4.0)}
    assert all("BudgetTooSmall" in r.error for r in failed)
    text = standings.markdown(standings.standings(records))
    assert "4 searches failed: BudgetTooSmall" in text


def test_time_over_begins_no_search(tmp_path):
    records, pool = run(job(tmp_path, until=0.0))
    assert records == [] and pool.asked == []


def made_up(entry: str, budget: float, values: list[float]) -> list[Record]:
    return [
        Record("m", entry, budget, "test", prompt, prompt, value, value == 1, value / 2, budget, 3)
        for prompt, value in enumerate(values)
    ]


def test_without_the_process_that_began_it_no_search_begins(tmp_path, monkeypatch):
    gone = SimpleNamespace(is_alive=lambda: False)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: gone)
    records, pool = run(job(tmp_path))
    assert records == [] and pool.asked == []


def test_differences_are_paired_by_prompt():
    best, mine = [0.5, 0.7, 0.9, 0.4], [0.6, 0.9, 1.0]
    rows = standings.standings([*made_up(BEST, 50, best), *made_up("mine", 50, mine)])
    assert [row["strategy"] for row in rows] == ["mine", BEST]
    paired = np.array(mine) - np.array(best[:3])
    assert rows[0]["minus best-of-n"] == interval(paired).signed
    assert rows[0]["quality"] == str(interval(mine)) and rows[0]["prompts"] == 3
    assert rows[0]["perfect"] == pytest.approx(1 / 3) and rows[0]["reward"] == pytest.approx(np.mean(mine) / 2)
    assert "minus best-of-n" not in rows[1]


def test_tables_go_by_budget_and_the_first_is_in_the_order_of_the_largest():
    records = [r for b in (50, 200) for n, v in (("a", [0.2, b / 200]), ("b", [0.6, 0.5])) for r in made_up(n, b, v)]
    text = standings.markdown(standings.standings(records))
    first = text.split("###")[0]
    assert first.index("| a |") < first.index("| b |")
    assert "| strategy | 50 NFE | 200 NFE |" in first
    assert text.count("### m, ") == 2


def test_entries_and_settings():
    entries = strategies.with_settings(["lotts", "best-of-n"], ["lotts.depth=2", "best-of-n.template=a {} b"])
    assert entries == ["lotts depth=2", "best-of-n 'template=a {} b'"]
    assert strategies.parse(entries[1]) == ("best-of-n", {"template": "a {} b"})
    assert strategies.parse(strategies.QUALITY_BASELINE)[1] == {"template": "A high-quality image of {}"}
    known = [strategies.parse(entry)[0] for entry in strategies.default_entries()]
    assert {"lotts", "adaptive-lotts", "best-of-n", "zero-order"} <= set(known) and "random-search" not in known
    for bad, message in (("lotts.depth", "STRATEGY.KEY=VALUE"), ("nobody.x=1", "not among the strategies")):
        with pytest.raises(BadInput, match=message):
            strategies.with_settings(["lotts"], [bad])
    for bad, message in (("lots", "did you mean 'lotts'"), ("lotts depth", "KEY=VALUE"), ("lotts dept=1", "depth")):
        with pytest.raises(BadInput, match=message):
            strategies.parse(bad)


def test_prompts_are_dealt_out_once_each():
    parts = strategies.shards(dataclasses.replace(job(Path("x"), file="m.jsonl"), numbers=tuple(range(10))), 4)
    assert [p.file for p in parts] == ["m-0.jsonl", "m-1.jsonl", "m-2.jsonl", "m-3.jsonl"]
    assert sorted(n for p in parts for n in p.numbers) == list(range(10))
    assert len(strategies.shards(job(Path("x")), 9)) == 4


@pytest.mark.slow
def test_a_process_that_dies_is_told_and_the_table_is_made_of_what_there_is(tmp_path, capsys):
    standing = job(tmp_path / "records", model="no-model", entries=(), numbers=(0,))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "old.jsonl").write_text("".join(map(standings.line, made_up(BEST, 50, [0.5]))))
    standing = dataclasses.replace(standing, split="test")
    figures = strategies.measure(["no-model"], [BEST], tmp_path, standing, 2, None)
    assert figures["failed processes"] == {"no-model-0.jsonl": "ended with exit code 1"}
    assert "its records are kept" in capsys.readouterr().err
    assert json.loads((tmp_path / "strategies.json").read_text())["searches"] == 1
    assert "0.500" in (tmp_path / "strategies.md").read_text()
