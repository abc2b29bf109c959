"""Several drivers: one table at the end, that of one driver, whatever happens to them and whatever their number is next time."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lotts_search.errors import BadInput
from lotts_search.study.conduct import Conducted, conduct
from lotts_search.study.drivers import driver_of, gather, shares
from lotts_search.study.folder import RunFolder
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.study.state import Standing, standing
from lotts_search.study.watch import Snapshot, together
from lotts_search.testing import AnalyticPool
from tests.made_up import made_up_search
from tests.study.worlds import files, lasting, opening, run, world


def several(yaml: Path, out: Path, drivers: int, fate: str = "") -> tuple[Conducted, Standing]:
    """Run a study by several drivers, the first of which has a fate."""
    study = read_study(yaml)
    tasks = tasks_of(study)
    folder = RunFolder(out)

    def command(path: Path, generators: int) -> list[str]:
        assert generators == 2
        words = [sys.executable, "-m", "tests.study.one_driver", str(yaml), str(path)]
        return [*words, fate] if fate and path.name == "0" else words

    try:
        gather(folder, tasks, study.name)
        stand = standing(folder, tasks, study.metrics)
        return conduct(study, folder, tasks, stand, opening(AnalyticPool()), drivers=([2] * drivers, command)), stand
    finally:
        folder.close()


def test_several_drivers_leave_the_folder_of_one(tmp_path: Path) -> None:
    yaml = world(tmp_path)
    run(yaml, tmp_path / "one")
    conducted, _ = several(yaml, tmp_path / "two", 2)
    assert conducted.outcome.status == "done" and conducted.outcome.errors == {}
    assert lasting(tmp_path / "two") == lasting(tmp_path / "one")
    assert files(tmp_path / "two") == files(tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "study.json").read_text()) for name in ("one", "two"))
    measured = {"started", "finished", "seconds", "generating", "busy", "machine", "searches", "command"}
    assert {k: v for k, v in two.items() if k not in measured} == {k: v for k, v in one.items() if k not in measured}
    for a, b in zip(one["searches"], two["searches"], strict=True):
        assert {k: a[k] for k in a.keys() - {"seconds", "device_s"}} == {
            k: b[k] for k in b.keys() - {"seconds", "device_s"}
        }


def test_a_driver_that_dies_leaves_what_it_has_and_another_number_of_drivers_resumes(tmp_path: Path) -> None:
    yaml = world(tmp_path)
    run(yaml, tmp_path / "one")
    conducted, _ = several(yaml, tmp_path / "run", 2, "die")
    assert conducted.outcome.status == "failed"
    assert not (tmp_path / "run" / "drivers").exists()
    begun = list((tmp_path / "run" / "journal").glob("*.journal"))
    assert begun, "its journals are taken over"
    conducted, stand = run(yaml, tmp_path / "run")
    # A journal may be left of a search whose rows were written already.
    assert 0 < len(stand.begun) <= len(begun) and stand.done and conducted.outcome.status == "done"
    assert lasting(tmp_path / "run") == lasting(tmp_path / "one")
    assert files(tmp_path / "run") == files(tmp_path / "one")


def test_what_killed_drivers_left_is_taken_over(tmp_path: Path) -> None:
    """As if the whole machine had died: the folders of two drivers are still there, one with a table, one with a log."""
    yaml = world(tmp_path)
    run(yaml, tmp_path / "one")
    study = read_study(yaml)
    tasks = tasks_of(study)
    out = tmp_path / "run"
    folder = RunFolder(out)
    run(yaml, out / "drivers" / "0")
    running = RunFolder(out / "drivers" / "1")
    running.add([replace(row, status="done") for row in made_up_search("best-of-n", "red star").trials], [])
    with pytest.raises(BadInput, match="another process is writing to"):
        gather(folder, tasks, study.name)
    running.close()
    gather(folder, tasks, study.name)
    folder.close()
    assert lasting(out) == lasting(tmp_path / "one") and not (out / "drivers").exists()
    assert pq.read_table(out / "aside.parquet").num_rows, "searches that the study does not have"


@pytest.mark.slow
def test_sigterm_stops_all_drivers_and_the_same_command_resumes(tmp_path: Path) -> None:
    yaml = world(tmp_path)
    run(yaml, tmp_path / "one")
    out = tmp_path / "run"

    def stop() -> None:
        """Stop the study once the other driver is done, and the first hangs."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.05)
            path = out / "drivers" / "1" / "study.json"
            if path.is_file() and json.loads(path.read_text())["status"] == "done":
                break
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    conducted, _ = several(yaml, out, 2, "hang")
    thread.join()
    assert conducted.outcome.status == "interrupted" and not (out / "drivers").exists()
    conducted, stand = several(yaml, out, 3)
    assert stand.done and stand.todo and conducted.outcome.status == "done"
    assert lasting(out) == lasting(tmp_path / "one") and files(out) == files(tmp_path / "one")


def test_searches_and_generators_are_divided_evenly() -> None:
    assert shares(256, 3) == [86, 85, 85] and shares(2, 2) == [1, 1]
    with pytest.raises(BadInput, match="each driver needs a generator: --drivers 3 with 2 generators"):
        shares(2, 3)
    counts = [0] * 4
    for number in range(4000):
        counts[driver_of(f"{number * 2654435761 % 2**64:016x}", 4)] += 1
    assert sum(counts) == 4000 and min(counts) > 900


def test_snapshots_of_drivers_are_summed_and_shares_are_means() -> None:
    parts = [
        Snapshot(5.0, 10, 4, 1, 100.0, 50.0, 3.0, 0.5, 0.25, 7),
        Snapshot(6.0, 2, 1, 0, 20.0, 30.0, 1.0, 1.0, 0.75, 3),
    ]
    assert together(parts) == Snapshot(6.0, 12, 5, 1, 120.0, 80.0, 4.0, 0.75, 0.5, 10)
    assert together([]) is None
