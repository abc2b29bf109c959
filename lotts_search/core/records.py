"""An append-only file of binary records, each preceded by its length and checksum: a torn end is found and dropped."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Self, TypeAlias

from lotts_search.errors import BadInput, LottsError

MAGIC = b"lotts-search 1\n"
_HEAD = struct.Struct("<QI")
Part: TypeAlias = bytes | memoryview


class JournalError(LottsError):
    """A journal cannot be written or read. It ends the search: work that is not recorded must not continue."""


class Records:
    """An append-only file of binary records; one process writes, in any of its threads. Opening it cuts off a torn end.

    Args:
        path: the file; it and its folder are created if missing.

    Attributes:
        size: bytes of the complete records.

    Raises:
        BadInput: the file is something else.
        JournalError: it cannot be opened.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._lock = Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise JournalError(f"cannot open {self.path}: {error}") from error
        try:
            self.size = self._whole()
            self._file.truncate(self.size)
            if not self.size:
                self._write([MAGIC])
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the records, oldest first."""
        return (self.read(at, length) for at, length in self.places())

    def places(self) -> Iterator[tuple[int, int]]:
        """Iterate over the positions and lengths of the records, oldest first, see :meth:`read`."""
        at = len(MAGIC)
        while at < self.size:
            length, _ = _HEAD.unpack(self.read(at, _HEAD.size))
            yield at + _HEAD.size, length
            at += _HEAD.size + length

    def read(self, at: int, length: int) -> bytes:
        """Return so many bytes from a position of the file.

        Raises:
            JournalError: they cannot be read.
        """
        try:
            data = os.pread(self._file.fileno(), length, at)
        except (OSError, ValueError) as error:
            raise JournalError(f"cannot read {self.path}: {error}") from error
        if len(data) < length:
            raise JournalError(f"cannot read {self.path}: it ends after {at + len(data)} bytes")
        return data

    def append(self, *parts: Part) -> int:
        """Append one record that consists of these parts, and return its position. It survives a crash of this process; after
        a power failure it may be missing, unless :meth:`sync` was called.

        Raises:
            JournalError: it cannot be written, e.g. because the disk is full.
        """
        check = 0
        for part in parts:
            check = zlib.crc32(part, check)
        with self._lock:
            at = self.size + _HEAD.size
            self._write([_HEAD.pack(sum(map(len, parts)), check), *parts])
        return at

    def sync(self) -> None:
        """Wait until everything is on the disk; a closed file is left alone. Others may append meanwhile.

        Raises:
            JournalError: it cannot be written.
        """
        with self._lock:
            if self._file.closed:
                return
            own = os.dup(self._file.fileno())
        try:
            os.fsync(own)
        except OSError as error:
            raise JournalError(f"cannot write {self.path}: {error}") from error
        finally:
            os.close(own)

    def close(self) -> None:
        """Close the file; it can be opened again."""
        with self._lock:
            self._file.close()

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, parts: list[Part]) -> None:
        left = [memoryview(part) for part in parts]
        try:
            while left:
                written = os.writev(self._file.fileno(), left[:1000])  # the system takes at most 1024
                self.size += written
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]
        except (OSError, ValueError) as error:
            raise JournalError(f"cannot write {self.path}: {error}") from error

    def _whole(self) -> int:
        """Return the length of the file up to the end of its last complete record."""
        total = os.fstat(self._file.fileno()).st_size
        with open(self.path, "rb") as file:
            start = file.read(len(MAGIC))
            if not MAGIC.startswith(start):
                raise BadInput(f"{self.path} is not a journal of lotts-search")
            if start != MAGIC:
                return 0
            end = len(MAGIC)
            while total - end >= _HEAD.size:
                length, check = _HEAD.unpack(file.read(_HEAD.size))
                # The length in a torn head may be anything: compare it with the file before reading that much.
                if length > total - end - _HEAD.size or zlib.crc32(file.read(length)) != check:
                    break
                end += _HEAD.size + length
        return end
