"""Studies from file to folder, on the analytic model: what they write, what they reuse, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from concurrent.futures import Future
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from lotts_search import BadInput, Failure, search
from lotts_search.core.records import JournalError, Records
from lotts_search.core.trial_table import TrialRecord, image_hash
from lotts_search.curves import load
from lotts_search.errors import LostWork, PoolClosed
from lotts_search.shapes.world.oracle import judge
from lotts_search.shapes.world.scene import scenes
from lotts_search.study.folder import RunFolder
from lotts_search.study.metrics import Judges, columns_of, complete
from lotts_search.study.prompts import Prompt
from lotts_search.study.read import read_study
from lotts_search.study.runner import time_shares
from lotts_search.study.searches import longest_first, tasks_of
from lotts_search.study.spec import Study
from lotts_search.testing import AnalyticPool
from lotts_search.work.pool import Checking
from lotts_search.work.requests import Generate, Result, Score, Segment, Work
from tests.made_up import made_up_search
from tests.study.worlds import YAML, files, lasting, run, table, world


def study_json(out: Path) -> dict:
    return json.loads((out / "study.json").read_text())


def test_every_combination_is_searched_as_by_itself(tmp_path: Path) -> None:
    conducted, stand = run(world(tmp_path), tmp_path / "run")
    assert (conducted.outcome.status, str(stand)) == ("done", "15 new")
    rows = lasting(tmp_path / "run")
    searches = study_json(tmp_path / "run")["searches"]
    wanted = Counter(
        (prompt, label, nfe)
        for prompt in ("red star", "blue ring", "green cross")
        for label, nfe in [("best-of-n", 40)] + [(f"lotts refinements={k}", n) for k in (1, 2) for n in (24, 40)]
    )
    by_search: dict[str, list[dict]] = {}
    for row in rows:
        by_search.setdefault(row["search_id"], []).append(row)
    assert list(by_search) == [s["search_id"] for s in searches]  # one after the other, in the study's order
    assert Counter((r[0]["prompt"], r[0]["label"], r[0]["budget_nfe"]) for r in by_search.values()) == wanted
    for row, *_ in by_search.values():
        alone = search(
            row["prompt"], strategy=row["strategy"], settings=json.loads(row["strategy_args"]), nfe=row["budget_nfe"],
            seed=row["search_seed"], pool=AnalyticPool(),
        )  # fmt: skip
        mine = by_search[row["search_id"]]
        assert [r["trial_id"] for r in mine] == [t.trial_id for t in alone.trials]
        assert [r["score"] for r in mine] == [t.score for t in alone.trials]
        (said,) = [s for s in searches if s["search_id"] == row["search_id"]]
        assert (said["score"], said["nfe"], said["status"]) == (alone.score, alone.ledger.nfe, "done")
    seeds = {(r[0]["prompt"], r[0]["search_seed"]) for r in by_search.values()}
    assert len(seeds) == 3  # the same for all strategies and budgets, another for each prompt


def test_the_prefix_of_a_nested_search_is_the_search_with_the_smaller_budget(tmp_path: Path) -> None:
    run(world(tmp_path), tmp_path / "nested")
    apart = world(tmp_path / "apart", YAML.replace("- best-of-n", "- {strategy: best-of-n, nested: false}"))
    run(apart, tmp_path / "single")
    whole = [row for row in lasting(tmp_path / "nested") if row["label"] == "best-of-n"]
    single = [row for row in lasting(tmp_path / "single") if row["label"] == "best-of-n"]
    assert {row["budget_nfe"] for row in whole} == {40} and {row["budget_nfe"] for row in single} == {24, 40}

    def trials(rows: list[dict]) -> list[tuple]:
        return [(r["prompt"], r["trial_id"], r["score"], r["nfe_cum"], r["best_so_far"]) for r in rows]

    assert trials([row for row in whole if row["nfe_cum"] <= 24]) == trials(
        [row for row in single if row["budget_nfe"] == 24]
    )


def test_searches_from_the_images_of_prompts_may_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = np.zeros((6, 6, 3), np.uint8)

    def study_of(path: Path) -> Study:
        return replace(read_study(path), prompts=(Prompt("bad", "red star", image=bad),))

    monkeypatch.setattr("tests.study.worlds.read_study", study_of)
    run(world(tmp_path, YAML.replace("- best-of-n", "- adaptive-lotts")), tmp_path / "run")
    kinds = {label: Counter() for label in ("adaptive-lotts", "lotts refinements=1", "lotts refinements=2")}
    for row in lasting(tmp_path / "run"):
        kinds[row["label"]][row["kind"]] += 1
    assert all(kind["encode"] == 2 for kind in kinds.values())
    assert {label for label, kind in kinds.items() if kind["sample"]} == {"adaptive-lotts"}


def test_images_are_kept_by_their_hash(tmp_path: Path) -> None:
    for keep in ("all", "best", "none"):
        run(world(tmp_path, YAML + f"images: {keep}\n"), tmp_path / keep)
    rows = lasting(tmp_path / "all")
    made = {row["image"] for row in rows if row["kind"] != "score" and row["image"]}
    best = {max((r for r in rows if r["search_id"] == i and r["image"]), key=lambda r: r["score"])["image"]
            for i in {row["search_id"] for row in rows}}  # fmt: skip
    kept = {keep: {path.stem for path in (tmp_path / keep / "images").iterdir()} for keep in ("all", "best", "none")}
    assert kept["all"] == made and kept["none"] == set()
    assert best <= kept["best"] < made
    for path in (tmp_path / "all" / "images").iterdir():
        image = Image.open(path)
        assert image_hash(np.asarray(image)) == path.stem
        assert json.loads(image.text["recipe"])["verifier"] == "shapes-reward"


def test_metrics_judge_complete_images_and_no_search_changes_by_them(tmp_path: Path) -> None:
    metrics = "metrics: [tests.actors.fakes:Brightness]\n"
    for name, more in {"none": "", "all": metrics, "best": metrics + "judge: best\n"}.items():
        run(world(tmp_path, YAML + more), tmp_path / name)
    rows = {name: lasting(tmp_path / name) for name in ("none", "all", "best")}
    judged = {name: [r.pop("metric_Brightness") for r in rows[name]] for name in ("all", "best")}
    assert rows["all"] == rows["none"] == rows["best"]
    so_far: dict[str, float] = {}
    for row, everything, leading in zip(rows["all"], judged["all"], judged["best"], strict=True):
        complete = row["kind"] != "score" and row["image"] is not None
        assert (everything is not None) == complete
        if complete:
            assert everything == row["score"]  # the analytic pool's verifiers are all the same
            assert leading in (everything, None)
            if row["score"] > so_far.get(row["search_id"], -1) or row["label"] == "best-of-n":
                assert leading is not None
                so_far[row["search_id"]] = row["score"]
    assert judged["best"].count(None) > judged["all"].count(None)
    assert study_json(tmp_path / "all")["metrics"] == ["Brightness"]


def test_a_metric_of_another_package_judges_in_a_thread(tmp_path: Path) -> None:
    run(world(tmp_path, YAML + "metrics: [tests.study.contrast:Contrast]\n"), tmp_path / "run")
    rows = lasting(tmp_path / "run")
    judged = [row for row in rows if row["metric_darkest"] is not None]
    assert len(judged) == sum(row["kind"] != "score" and row["image"] is not None for row in rows) > 0
    for row in judged:
        image = tmp_path / "run" / "images" / f"{row['image']}.png"
        if image.is_file():
            pixels = np.asarray(Image.open(image))
            assert (row["metric_darkest"], row["metric_brightest"]) == (pixels.min(), pixels.max())
    assert study_json(tmp_path / "run")["metrics"] == ["darkest", "brightest"]
    with pytest.raises(BadInput, match=r"line 8: no contrast is known of 'no blue'"):
        read_study(world(tmp_path, YAML.replace("blue ring", "no blue") + "metrics: [tests.study.contrast:Contrast]\n"))
    with pytest.raises(BadInput, match="Contrast is held out: it may be a metric, never the verifier"):
        read_study(world(tmp_path, YAML + "verifier: tests.study.contrast:Contrast\n"))


def test_a_time_limit_leaves_searches_open_and_the_same_command_resumes(tmp_path: Path) -> None:
    whole, out, stuck = tmp_path / "whole", tmp_path / "run", [True]
    run(world(tmp_path), whole)

    class Stuck(AnalyticPool):
        def submit(self, work: Generate | Score) -> Future[Result]:
            held = isinstance(work, Segment) and work.sampling.prompt == "green cross" and stuck
            return Future() if held else super().submit(work)

    conducted, _ = run(world(tmp_path, YAML + "seconds: 2\n"), out, Stuck())
    assert (conducted.outcome.status, study_json(out)["status"]) == ("out of time", "out of time")
    states = Counter((s["prompt_id"], s["status"]) for s in conducted.searches)
    assert sorted(n for (_, status), n in states.items() if status == "done") == [5, 5] and len(states) == 3
    conducted, stand = run(world(tmp_path, YAML + "seconds: 60\n"), out)
    assert len(stand.done) == 10 and conducted.outcome.status == "done" and lasting(out) == lasting(whole)


def test_models_share_a_time_limit() -> None:
    assert time_shares(90, 3) == [45, 22.5, 22.5] and time_shares(90, 1) == [90]
    assert time_shares(None, 2) == [None, None] and time_shares(90, 0) == []


def test_a_folder_whose_searches_have_other_ids_is_refused_and_can_be_reported(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(world(tmp_path), out)
    rows, about = lasting(out), study_json(out)
    (out / "study.json").write_text(json.dumps(about | {"format": 1}))
    pool = AnalyticPool()
    with pytest.raises(BadInput, match="a version of lotts-search whose searches have other ids: finish it with that"):
        run(world(tmp_path), out, pool)
    assert pool.asked == [] and lasting(out) == rows and study_json(out)["format"] == 1
    assert load(out).find("best-of-n", nfe=24).label == "best-of-n"


def test_a_finished_study_runs_nothing_again(tmp_path: Path) -> None:
    run(world(tmp_path), tmp_path / "run")
    rows, kept, said = lasting(tmp_path / "run"), files(tmp_path / "run"), study_json(tmp_path / "run")
    pool = AnalyticPool()
    _, stand = run(world(tmp_path), tmp_path / "run", pool)
    assert (str(stand), pool.asked) == ("15 reused", [])
    assert (lasting(tmp_path / "run"), files(tmp_path / "run")) == (rows, kept)
    assert study_json(tmp_path / "run") == said


def test_a_changed_study_reuses_what_it_can_and_keeps_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(world(tmp_path), out)
    first = lasting(out)
    changed = YAML.replace("[1, 2]", "[2, 4]").replace("strategy: lotts", "strategy: lotts\n    label: L {refinements}")
    pool = AnalyticPool()
    _, stand = run(world(tmp_path, changed), out, pool)
    assert str(stand) == "9 reused, 6 new, 6 set aside"
    assert {row["label"] for row in lasting(out)} == {"best-of-n", "L 2", "L 4"}
    assert sum(work.nfe for work in pool.asked) == sum(row["nfe"] for row in lasting(out) if row["label"] == "L 4")
    pool = AnalyticPool()
    _, stand = run(world(tmp_path), out, pool)
    assert (str(stand), pool.asked) == ("15 reused, 6 set aside", [])
    assert lasting(out) == first


def test_what_decides_a_search_is_in_its_id(tmp_path: Path) -> None:
    base = {task.search_id for task in tasks_of(read_study(world(tmp_path / "one")))}
    same = [YAML + "name: other\nmetrics: [tests.actors.fakes:Brightness]\nimages: all\n",
            YAML.replace("strategy: lotts", "strategy: lotts\n    label: mine {refinements}")]  # fmt: skip
    other = [
        "seeds: [1]\n",
        "verifier: tests.actors.fakes:Brightness\n",
        "steps: 7\n",
        "workers: 4\n",
        "negative: blurry\n",
    ]
    for yaml in same:
        path = world(tmp_path / "one", yaml)
        assert {task.search_id for task in tasks_of(read_study(path))} == base
    for more in other:
        path = world(tmp_path / "one", YAML + more)
        assert {task.search_id for task in tasks_of(read_study(path))}.isdisjoint(base), more


NOISED = "noisy:of=shapes-reward,sd=0.03"
SEVERAL = YAML + "verifier: [shapes-reward, {noisy: {of: shapes-reward, sd: 0.03}}]\n"


class Disagreeing(AnalyticPool):
    """Its noisy verifier prefers what the other one dislikes."""

    def submit(self, work: Work) -> Future[Result]:
        found = super().submit(work)
        if isinstance(work, Score) and work.verifier == NOISED:
            result, found = found.result(), Future()
            assert result.score is not None
            found.set_result(replace(result, score=-result.score))
        return found


def test_several_verifiers_give_what_a_study_of_each_gives(tmp_path: Path) -> None:
    run(world(tmp_path, SEVERAL), tmp_path / "both", Disagreeing())
    rows = lasting(tmp_path / "both")
    apart = []
    for number, verifier in enumerate(["shapes-reward", NOISED]):
        run(world(tmp_path, f"{YAML}verifier: '{verifier}'\n"), tmp_path / str(number), Disagreeing())
        apart += [row | {"model": f"analytic, {verifier}"} for row in lasting(tmp_path / str(number))]
        assert {row["model"] for row in lasting(tmp_path / str(number))} == {"analytic"}
    assert rows == apart  # with the ids of their searches
    returned = [{row["best_so_far"] for row in rows if row["model"].endswith(end)} for end in ("reward", "sd=0.03")]
    assert returned[0].isdisjoint(returned[1])
    described = study_json(tmp_path / "both")["models"]
    assert [(m["label"], m["verifier"]) for m in described] == [
        (f"analytic, {v}", v) for v in ("shapes-reward", NOISED)
    ]
    table = load(tmp_path / "both")
    assert {setup.model for setup in table.setups} == {m["label"] for m in described}


def test_a_study_takes_another_verifier_and_resumes_with_several(tmp_path: Path) -> None:
    run(world(tmp_path), tmp_path / "run", Disagreeing())
    out, path = tmp_path / "run", world(tmp_path, SEVERAL)
    asked = Disagreeing()
    conducted, stand = run(path, out, asked)
    assert (conducted.outcome.status, str(stand)) == ("done", "15 reused, 15 new")
    assert {work.verifier for work in asked.asked if isinstance(work, Score)} == {NOISED}
    run(path, tmp_path / "whole", Disagreeing())
    assert lasting(out) == lasting(tmp_path / "whole")
    whole = len(asked.asked)

    class Interrupted(Disagreeing):
        def submit(self, work: Work) -> Future[Result]:
            return interrupt(self, work) if len(self.asked) == whole * 3 // 2 else super().submit(work)

    conducted, _ = run(path, tmp_path / "resumed", Interrupted())
    assert conducted.outcome.status == "interrupted"
    conducted, stand = run(path, tmp_path / "resumed", Disagreeing())
    assert conducted.outcome.status == "done" and len(stand.done) >= 15 and stand.todo
    assert lasting(tmp_path / "resumed") == lasting(out)


class Once(AnalyticPool):
    """Does something when it is asked for the so-many-th work."""

    def __init__(self, number: int, action):
        super().__init__(shuffle=1)
        self.number, self.action = number, action

    def submit(self, work: Generate | Score) -> Future[Result]:
        if len(self.asked) == self.number:
            self.asked.append(work)
            return self.action(self, work)
        return super().submit(work)


def interrupt(pool: AnalyticPool, work: Generate | Score) -> Future[Result]:
    os.kill(os.getpid(), signal.SIGTERM if isinstance(pool, Terminated) else signal.SIGINT)
    return Future()


class Terminated(Once):
    pass


@pytest.mark.parametrize("kind, sigint", [
    (Once, signal.default_int_handler), (Terminated, signal.default_int_handler),
    (Terminated, signal.SIG_IGN),  # as in what a script starts in the background
])  # fmt: skip
def test_ctrl_c_and_sigterm_keep_everything(tmp_path: Path, kind: type[Once], sigint: Any) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(world(tmp_path), whole)
    before = signal.signal(signal.SIGINT, sigint)
    try:
        with kind(60, interrupt) as pool:
            conducted, _ = run(world(tmp_path), out, pool)
    finally:
        signal.signal(signal.SIGINT, before)
    assert conducted.outcome.status == study_json(out)["status"] == "interrupted"
    states = Counter(s["status"] for s in conducted.searches)
    assert states["open"] and set(states) <= {"open", "done"}
    begun = list((out / "journal").glob("*.journal"))
    assert 0 < len(begun) <= states["open"]
    pool = AnalyticPool()
    conducted, stand = run(world(tmp_path), out, pool)
    assert len(stand.begun) == len(begun) and conducted.outcome.status == "done"
    assert lasting(out) == lasting(whole) and files(out) == files(whole)
    assert sum(work.nfe for work in pool.asked) < sum(row["nfe"] for row in lasting(whole))


def test_rows_of_another_version_are_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(world(tmp_path), out)
    for strange in (b"not msgpack", msgpack.packb([["search_id", "colour"], [["a", "red"]], []])):
        (out / "journal" / "finished.log").unlink(missing_ok=True)
        with Records(out / "journal" / "finished.log") as log:
            log.append(strange)
        with pytest.raises(JournalError, match=r"finished\.log was written by another version"):
            run(world(tmp_path), out)


def test_a_pool_that_breaks_stops_the_study_and_fails_no_search(tmp_path: Path) -> None:
    whole, out, yaml = tmp_path / "whole", tmp_path / "run", YAML + "at-once: 2\n"
    run(world(tmp_path), whole)

    def gone(work: Generate | Score) -> Exception | None:
        return PoolClosed("no generator is left: it died") if len(pool.asked) > 60 else None

    pool = AnalyticPool(fail=gone)
    conducted, _ = run(world(tmp_path, yaml), out, pool)
    assert (conducted.outcome.status, conducted.outcome.error) == ("failed", "no generator is left: it died")
    assert {s["status"] for s in conducted.searches} == {"open", "done"}
    conducted, _ = run(world(tmp_path, yaml), out)
    assert conducted.outcome.status == "done" and lasting(out) == lasting(whole)


def test_searches_that_fail_are_told_and_tried_again(tmp_path: Path) -> None:
    out, ill = tmp_path / "run", [True]

    def nan(work: Generate | Score) -> Exception | None:
        wrong = isinstance(work, Segment) and work.sampling.prompt == "blue ring"
        return Failure("the latent is NaN") if wrong and ill else None

    conducted, _ = run(world(tmp_path), out, AnalyticPool(fail=nan))
    assert conducted.outcome.status == "done"
    failed = [s for s in conducted.searches if s["status"] == "failed"]
    assert len(failed) == 5 and all("the latent is NaN" in s["error"] for s in failed)
    assert {row["status"] for row in lasting(out) if row["prompt"] == "blue ring"} == {"failed"}
    ill.clear()
    conducted, stand = run(world(tmp_path), out)
    assert str(stand) == "10 reused, 5 to retry"
    assert {s["status"] for s in conducted.searches} == {"done"}
    run(world(tmp_path), tmp_path / "whole")
    assert lasting(out) == lasting(tmp_path / "whole") and files(out) == files(tmp_path / "whole")


def test_trials_that_are_lost_with_their_workers_are_told_and_tried_again(tmp_path: Path) -> None:
    out, ill = tmp_path / "run", [True]

    def lose(work: Generate | Score) -> Exception | None:
        """Lose the second image of each prompt, as if its workers had died."""
        second = isinstance(work, Segment) and work.lineage[0] == "seed 1" and work.sampling.prompt == "blue ring"
        return LostWork("3 workers died that ran nothing else") if second and ill else None

    conducted, _ = run(world(tmp_path), out, AnalyticPool(fail=lose))
    lost = [s for s in conducted.searches if s["status"] == "failed"]
    assert conducted.outcome.status == "done" and 0 < len(lost) < len(conducted.searches)
    assert all(s["score"] is not None and "lost with their workers" in s["error"] for s in lost)
    again, stand = run(world(tmp_path), out, AnalyticPool(fail=lose))
    assert len(stand.failed) == len(lost), "they are lost again, and told again"
    assert [s["status"] for s in again.searches] == [s["status"] for s in conducted.searches]
    ill.clear()
    asked = AnalyticPool()
    conducted, _ = run(world(tmp_path), out, asked)
    assert {s["status"] for s in conducted.searches} == {"done"}
    whole = AnalyticPool()
    run(world(tmp_path), tmp_path / "whole", whole)
    assert lasting(out) == lasting(tmp_path / "whole") and files(out) >= files(tmp_path / "whole")
    assert 0 < sum(work.nfe for work in asked.asked) < 0.3 * sum(work.nfe for work in whole.asked)


def test_a_strategys_own_fault_fails_its_searches_alone(tmp_path: Path) -> None:
    yaml = YAML.replace("- best-of-n", "- tests.study.faulty:Faulty")
    conducted, _ = run(world(tmp_path, yaml), tmp_path / "run")
    states = {(s["label"], s["status"], s["error"]) for s in conducted.searches}
    assert ("Faulty", "failed", "division by zero") in states
    assert {(label, state) for label, state, _ in states if label != "Faulty"} == {
        ("lotts refinements=1", "done"), ("lotts refinements=2", "done"),
    }  # fmt: skip
    assert study_json(tmp_path / "run")["searches"][0]["error"] == "division by zero"


def test_one_writer_and_no_strangers_folder(tmp_path: Path) -> None:
    held = RunFolder(tmp_path / "run")
    with pytest.raises(BadInput, match="another process is writing to"):
        RunFolder(tmp_path / "run")
    held.close()
    RunFolder(tmp_path / "run").close()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(BadInput, match="is not the folder of a study"):
        RunFolder(tmp_path / "mine")


def test_a_kill_between_rows_and_journal_leaves_no_journal(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(world(tmp_path), out)
    kept, task = files(out), tasks_of(read_study(world(tmp_path)))[0]
    folder = RunFolder(out)
    folder.journal(task, retry=False).close()
    folder.close()
    run(world(tmp_path), out)
    assert files(out) == kept


def test_rows_that_were_logged_and_not_yet_merged_count_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(world(tmp_path), out)
    expected = lasting(out)
    rows, names = table(out).to_pylist(), [column.name for column in fields(TrialRecord) if column.name != "metrics"]
    first = [
        TrialRecord(
            **{name: row[name] for name in names},
            metrics={key.removeprefix("metric_"): row[key] for key in row if key.startswith("metric_")},
        )
        for row in rows
        if row["search_id"] == rows[0]["search_id"]
    ]
    folder = RunFolder(out)
    folder.add(first, [])
    folder.close()
    _, stand = run(world(tmp_path), out)
    assert str(stand) == "15 reused" and lasting(out) == expected


def test_the_last_searches_begin_with_the_longest(tmp_path: Path) -> None:
    yaml = YAML.replace("- best-of-n", "- more-steps").replace("[24, 40]", "[24, 40, 400]")
    tasks = tasks_of(read_study(world(tmp_path, yaml)))
    ordered = longest_first(tasks, 4)
    assert ordered[: len(tasks) - 8] == tasks[: len(tasks) - 8] and sorted(t.number for t in ordered) == list(
        range(len(tasks))
    )
    lengths = [task.cost.longest for task in ordered[len(tasks) - 8 :]]
    assert lengths == sorted(lengths, reverse=True)


def test_the_oracle_fills_its_columns_and_a_dead_one_fails_one_search_alone() -> None:
    scene = scenes("test", 1)[0]
    found = made_up_search("best-of-n", scene.caption)
    for row in found.trials:
        if row.trial_id in found.images:
            row.image = image_hash(found.images[row.trial_id])
    rows = complete(found.trials)

    async def judged(judges: Judges) -> None:
        await judges.judge(found, AnalyticPool(), everything=True)
        before = [dict(row.metrics) for row in rows]
        (worker,) = judges._executors["shapes-oracle"]._processes.values()
        worker.kill()
        with pytest.raises(Failure, match="a process of shapes-oracle died"):
            await judges.judge(found, AnalyticPool(), everything=True)
        await judges.judge(found, AnalyticPool(), everything=True)
        assert [row.metrics for row in rows] == before

    with Judges(["shapes-oracle"]) as judges:
        asyncio.run(judged(judges))
    for row in rows:
        verdict = judge(found.images[row.trial_id], scene)
        assert row.metrics == {"oracle": verdict.quality, "perfect": float(verdict.perfect)}
    assert columns_of(["shapes-oracle", "package.module:Mine"]) == ["oracle", "perfect", "Mine"]


class Probed(AnalyticPool, Checking):
    """Its verifier ``unfit`` cannot score images of the model's size."""

    def __init__(self, unfit: str):
        def fail(work: Work) -> Exception | None:
            return BadInput("it scores images of 64 pixels") if getattr(work, "verifier", "") == unfit else None

        super().__init__(fail=lambda work: fail(work) if isinstance(work, Score) else None)


@pytest.mark.parametrize("unfit", ["shapes-reward", "tests.actors.fakes:Brightness"])
def test_no_search_is_paid_for_whose_verifier_or_metric_cannot_score(tmp_path: Path, unfit: str) -> None:
    pool = Probed(unfit)
    study = world(tmp_path, YAML + "metrics: [tests.actors.fakes:Brightness]\n")
    conducted, stand = run(study, tmp_path / "run", pool)
    assert set(conducted.outcome.errors.values()) == {"it scores images of 64 pixels"}
    assert len(conducted.outcome.errors) == len(stand.todo) == 15
    assert [work for work in pool.asked if work.nfe] == []


def test_a_metric_that_can_score_is_probed_once(tmp_path: Path) -> None:
    pool = Probed("")
    conducted, _ = run(world(tmp_path, YAML + "metrics: [tests.actors.fakes:Brightness]\n"), tmp_path / "run", pool)
    assert conducted.outcome.status == "done" and conducted.outcome.errors == {}
    probes = [work.verifier for work in pool.asked if isinstance(work, Score) and work.probe]
    assert sorted(probes) == ["shapes-reward", "tests.actors.fakes:Brightness"]
