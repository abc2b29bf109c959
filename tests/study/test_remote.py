"""Run folders at URLs: what is there is the local folder, another machine resumes it, and nothing is lost between two uploads."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import fsspec
import pytest

from lotts_search.errors import BadInput, Failure
from lotts_search.study import remote
from lotts_search.study.remote import Mirror, fetched, mirrored
from lotts_search.study.status import status_of
from tests.cli.test_cli import call
from tests.study.worlds import YAML, files, lasting, run, world


@pytest.fixture
def url() -> Iterator[str]:
    """An empty place."""
    place = f"memory://runs/{uuid.uuid4().hex}"
    yield place
    memory = fsspec.filesystem("memory")
    if memory.exists(place):
        memory.rm(place, recursive=True)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Continue on a machine with this name."""

    def change(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    change("first")
    return change


def there(url: str) -> set[str]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return {name.removeprefix(root + "/") for name in filesystem.find(root)} - {"journal/writer"}


def test_a_study_at_a_url_is_the_local_one(tmp_path: Path, url: str, machine: Callable[[str], None]) -> None:
    yaml = world(tmp_path)
    run(yaml, tmp_path / "run")
    with mirrored(url) as path:
        run(yaml, path)
    assert there(url) == files(tmp_path / "run")
    machine("second")
    with fetched(url) as path:
        assert lasting(path) == lasting(tmp_path / "run")
    found = status_of(url)
    assert (found.status, found.done, found.begun) == ("done", 15, 0)


def test_another_machine_resumes(tmp_path: Path, url: str, machine: Callable[[str], None]) -> None:
    """The first is lost after some searches: what it had uploaded is not run again."""
    yaml = world(tmp_path)
    run(yaml, tmp_path / "whole")

    with mirrored(url) as path:
        run(world(tmp_path, YAML.replace(", green cross", "")), path)
        left = next(path.glob("images/*.png"))
        journal = path / "journal" / "0123456789abcdef.journal"
        journal.write_bytes(b"lotts-search 1\n")
    assert status_of(url).begun == 1
    machine("second")
    with mirrored(url) as path:
        assert (
            journal.name in {file.name for file in (path / "journal").iterdir()}
            and (path / "images" / left.name).is_file()
        )
        (path / "journal" / journal.name).unlink()
        conducted, stand = run(world(tmp_path), path)
    assert (len(stand.done), len(stand.new)) == (10, 5) and conducted.outcome.status == "done"
    assert there(url) == files(tmp_path / "whole")
    machine("first")  # which has an older folder: it is replaced
    with mirrored(url) as path:
        assert lasting(path) == lasting(tmp_path / "whole") and files(path) - {"journal/writer"} == there(url)


def test_the_last_writer_keeps_what_it_had_not_uploaded(
    tmp_path: Path, url: str, machine: Callable[[str], None]
) -> None:
    with mirrored(url) as path:
        (path / "study.json").write_text("old")
    (path / "study.json").write_text("newer, and not uploaded")
    with mirrored(url) as path:
        assert (path / "study.json").read_text() == "newer, and not uploaded"


def test_a_row_that_moves_during_an_upload_is_not_lost(tmp_path: Path, url: str) -> None:
    """The log is merged into the table after it was listed: the table is uploaded again, and only then the log is deleted."""
    local = tmp_path / "run"
    mirror = Mirror(url, local)
    (local / "journal").mkdir()
    (local / "journal" / "finished.log").write_text("a row")
    (local / "trials.parquet").write_text("no row")
    mirror.upload()
    (local / "journal" / "finished.log").write_text("two rows")
    put, moved = mirror.files.put_file, []

    def moving(source: str, target: str) -> None:
        if not moved:
            moved.append(source)
            (local / "trials.parquet").write_text("all rows are here now")
            (local / "journal" / "finished.log").unlink()
        put(source, target)

    with patch.object(mirror.files, "put_file", moving):
        mirror.upload()
    assert moved and there(url) == {"trials.parquet"}
    filesystem, root = fsspec.core.url_to_fs(url)
    assert filesystem.cat(f"{root}/trials.parquet") == b"all rows are here now"


def test_files_are_uploaded_while_the_study_runs(
    tmp_path: Path, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "UPLOAD_S", 0.01)
    place = tmp_path / "shared"
    with mirrored(f"file://{place}") as path:
        (path / "study.json").write_text("{}")
        for _ in range(2000):
            if (place / "study.json").is_file():
                break
            remote.threading.Event().wait(0.01)
        assert (place / "study.json").read_text() == "{}"
        (path / "x.tmp").write_text("not for others")
    assert not (place / "x.tmp").exists()


def test_the_commands_take_urls(
    tmp_path: Path, url: str, machine: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with mirrored(url) as path:
        run(world(tmp_path), path)
    assert call("status", url, "--json") == 0
    assert json.loads(capsys.readouterr().out)["done"] == 15
    assert call("report", url, "--trees", "0", "--no-figures", "--out", tmp_path / "report") == 0
    assert url in (tmp_path / "report" / "index.html").read_text()
    assert call("report", url) == 2 and "--out" in capsys.readouterr().err
    assert call("study", tmp_path / "study.yaml", "--out", url, "--dry-run", "--json", "--local") == 0
    assert json.loads(capsys.readouterr().out)["reused"] == 15


def test_a_filesystem_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere://run: Protocol not known: nowhere"):
        Mirror("nowhere://run", tmp_path)
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(Failure, match="cannot"):
        mirror = Mirror(f"file://{place}/run", tmp_path / "local")
        (tmp_path / "local" / "a").write_text("")
        mirror.upload()
    shutil.rmtree(tmp_path / "local")
