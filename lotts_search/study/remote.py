"""Run folders on any filesystem that fsspec knows, such as ``s3://bucket/run``: a local folder, and its copy there.

A study works in a local folder. Its files are downloaded before it begins, so that it resumes what another machine began, and
uploaded from time to time and at its end. What a machine that is lost had not uploaded yet is run again.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from lotts_search.errors import BadInput, Failure

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

UPLOAD_S = 60.0
"""Seconds between two uploads."""
LOCAL = ("lock", ".tmp")
"""Endings of files that concern this machine alone."""
WRITER = "journal/writer"
"""File with the name of the last run that wrote to a URL."""
TABLES = ("aside.parquet", "trials.parquet")

Stat = tuple[int, int]


def is_remote(place: Path | str) -> bool:
    """Return whether a place is a URL, such as ``s3://bucket/run``, and not a path."""
    return "://" in str(place)


class Mirror:
    """A local folder and its copy at a URL.

    Args:
        url: of the copy, e.g. ``s3://bucket/run``.
        local: the local folder; created if it is missing.

    Raises:
        BadInput: no installed package knows such a filesystem.
    """

    def __init__(self, url: str, local: Path) -> None:
        self.url, self.local = url, local
        self.files, self._root = _filesystem(url)
        self._sent: dict[str, Stat] = {}
        local.mkdir(parents=True, exist_ok=True)

    def download(self, wanted: Callable[[str], bool] = lambda name: True) -> set[str]:
        """Copy the files at the URL whose names are wanted to the local folder, and return the names of all of them.

        Raises:
            Failure: they cannot be read.
        """
        try:
            there = self._there()
            for name in filter(wanted, there):
                path = self.local / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(f"{self._root}/{name}", str(path))
                self._sent[name] = _stat(path)
        except OSError as error:
            raise Failure(f"cannot read {self.url}: {error}") from error
        return there

    def begin(self) -> None:
        """Take over what is at the URL, unless this folder was the last to write there: then it is at least as new.

        Raises:
            Failure: the URL cannot be read or written.
        """
        mine = self.local / WRITER
        before = mine.read_text() if mine.is_file() else ""
        self.download(WRITER.__eq__)
        if not mine.is_file() or mine.read_text() != before:
            there = self.download()
            for name in self._here().keys() - there:
                (self.local / name).unlink()
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text(uuid4().hex)
        self.upload()

    def upload(self) -> None:
        """Make what is at the URL the local folder. Files may be written meanwhile: a row that has moved from one file to another
        is in one of them there, too.

        Raises:
            Failure: it cannot be written.
        """
        try:
            while True:
                here = self._here()
                for name, stat in here.items():
                    if self._sent.get(name) == stat:
                        continue
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        self.files.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
                        self.files.put_file(str(self.local / name), f"{self._root}/{name}")
                        self._sent[name] = stat
                if all(self._now(name) == here.get(name) for name in TABLES):
                    break
            for name in self._there() - here.keys():
                self.files.rm_file(f"{self._root}/{name}")
                self._sent.pop(name, None)
        except OSError as error:
            raise Failure(f"cannot write {self.url}: {error}") from error

    def _here(self) -> dict[str, Stat]:
        """Return the local files. Journals come first, tables last: the way that rows take."""
        found: dict[str, Stat] = {}
        for folder in ("journal", "drivers", "images", "."):
            top = self.local / folder
            for path in sorted(top.glob("*") if folder == "." else top.rglob("*")):
                with suppress(FileNotFoundError):
                    if path.is_file() and not path.name.endswith(LOCAL):
                        found[path.relative_to(self.local).as_posix()] = _stat(path)
        return found

    def _now(self, name: str) -> Stat | None:
        with suppress(FileNotFoundError):
            return _stat(self.local / name)
        return None

    def _there(self) -> set[str]:
        self.files.invalidate_cache()
        if not self.files.exists(self._root):
            return set()
        prefix = self._root.strip("/") + "/"
        return {name.strip("/").removeprefix(prefix) for name in self.files.find(self._root)}


@contextmanager
def mirrored(place: str) -> Iterator[Path]:
    """Yield a run folder for writing: the path itself, or for a URL a folder in the user's cache, which is uploaded from time to
    time and at the end.

    Raises:
        BadInput, Failure: see :class:`Mirror`; an upload that fails during the run is tried again.
    """
    if not is_remote(place):
        yield Path(place)
        return
    mirror = Mirror(place, working_folder(place))
    mirror.begin()
    over = threading.Event()

    def keep_up() -> None:
        while not over.wait(UPLOAD_S):
            with suppress(Failure):
                mirror.upload()

    thread = threading.Thread(target=keep_up, name="lotts-search upload", daemon=True)
    thread.start()
    try:
        yield mirror.local
    finally:
        over.set()
        thread.join()
        mirror.upload()


@contextmanager
def fetched(place: Path | str) -> Iterator[Path]:
    """Yield a run folder for reading: the path itself, or a download of a URL without its journals."""
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="lotts-") as name:
        Mirror(str(place), Path(name)).download(lambda name: not name.endswith(".journal"))
        yield Path(name)


def working_folder(url: str) -> Path:
    """Return the local folder of a URL, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lotts-search" / "runs" / blake2b(url.rstrip("/").encode(), digest_size=8).hexdigest()


def _filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise BadInput(f"{url}: {error}") from error
    return files, root.rstrip("/")


def _stat(path: Path) -> Stat:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
