"""What a finished search leaves: written once, by several threads, and on the disk before its journal is deleted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from lotts_search.core.records import Records
from lotts_search.study import keep
from lotts_search.study.folder import RunFolder
from lotts_search.study.keep import Writer
from lotts_search.study.read import read_study
from lotts_search.study.searches import tasks_of
from lotts_search.work.replacing import replacing
from tests.made_up import made_up_search
from tests.study.worlds import files, run, world


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first:
        first.write_text("first")
        names = []

        async def other() -> None:
            def write() -> None:
                with replacing(tmp_path / "a") as second:
                    names.append(second)
                    second.write_text("second")

            await asyncio.to_thread(write)

        asyncio.run(other())
    assert names != [first] and (tmp_path / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_was_writing_is_deleted(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(world(tmp_path), out)
    expected = files(out)
    for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
        (folder / ".progress.json.1.2.tmp").write_text("half")
    assert files(out) > expected
    RunFolder(out).close()
    assert files(out) == expected


def test_a_journal_is_deleted_after_its_rows_are_on_the_disk(tmp_path: Path) -> None:
    happened: list[str] = []
    sync, forget = Records.sync, RunFolder.forget

    def synced(records: Records) -> None:
        sync(records)
        happened.append("sync")

    def forgotten(folder: RunFolder, task: object) -> None:
        forget(folder, task)  # type: ignore[arg-type]
        happened.append("forget")

    with patch.object(Records, "sync", synced), patch.object(RunFolder, "forget", forgotten):
        conducted, _ = run(world(tmp_path), tmp_path / "run")
    assert conducted.outcome.status == "done"
    assert happened.count("forget") == len(conducted.searches) and happened[0] == "sync"
    assert not list((tmp_path / "run" / "journal").glob("*.journal"))


def test_rows_do_not_wait_for_the_disk(tmp_path: Path) -> None:
    """A disk that takes a while holds up no search: its rows are written meanwhile."""
    task = tasks_of(read_study(world(tmp_path)))[0]
    folder = RunFolder(tmp_path / "run")
    found = made_up_search("best-of-n", "red star")
    slow = asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        writer = Writer(folder, [], "all", lambda: None)

        def sync(_: RunFolder) -> None:
            asyncio.run_coroutine_threadsafe(slow.wait(), loop).result()

        with patch.object(keep, "SYNC_S", -1.0), patch.object(RunFolder, "sync", sync):
            for _ in range(3):
                await writer.write(task, found, over=True)
            slow.set()
            await asyncio.to_thread(writer.close)

    asyncio.run(main())
    assert len(folder.rows() or ()) == len(found.trials)
    assert {path.stem for path in folder.images.iterdir()} == {row.image for row in found.trials if row.image}
    for path in folder.images.iterdir():
        assert np.asarray(Image.open(path)).ndim == 3
    folder.close()
