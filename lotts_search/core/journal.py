"""The journal of a search: what its finished trials returned, so that the search can be replayed.

An append-only file of records. Each record is preceded by its length and checksum, so that a last record that a crash
has torn is found and dropped. Contents are msgpack: dataclasses of :mod:`lotts_search.work.requests` by name, and arrays
by the hash of their bytes, written once per file however many states share them. Nothing in it is ever executed.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import msgpack
import numpy as np

from lotts_search.errors import BadInput, Failure, LostWork, LottsError, PoolClosed
from lotts_search.work import requests as work
from lotts_search.work.requests import Result

MAGIC = b"lotts-search 1\n"
_HEAD = struct.Struct("<QI")
_TUPLE, _OBJECT, _ARRAY = 1, 2, 3
_KNOWN = {name: cls for name, cls in vars(work).items() if isinstance(cls, type) and dataclasses.is_dataclass(cls)}


class JournalError(LottsError):
    """A journal cannot be written or read. It ends the search: work that is not recorded must not continue."""


class Records:
    """An append-only file of binary records; one writer at a time. Opening it cuts off a torn end.

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
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise JournalError(f"cannot open {self.path}: {error}") from error
        try:
            self.size = self._whole()
            self._file.truncate(self.size)
            if not self.size:
                self._write(MAGIC)
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the records, oldest first."""
        with open(self.path, "rb") as file:
            file.seek(len(MAGIC))
            while file.tell() < self.size:
                length, _ = _HEAD.unpack(file.read(_HEAD.size))
                yield file.read(length)

    def append(self, record: bytes) -> None:
        """Append a record. It survives a crash of this process; after a power failure it may be missing.

        Raises:
            JournalError: it cannot be written, e.g. because the disk is full.
        """
        self._write(_HEAD.pack(len(record), zlib.crc32(record)) + record)

    def close(self) -> None:
        """Close the file; it can be opened again."""
        self._file.close()

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except (OSError, ValueError) as error:
            raise JournalError(f"cannot write {self.path}: {error}") from error
        self.size += len(data)

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


class Journal:
    """What the finished trials of one search returned, by name.

    Args:
        path: the file; an existing one is read and continued, a missing one is created.
        search_id: id of the search that it belongs to.
        contents: fingerprint of the files and the code that decide it; "" = not compared.
        retry: forget the recorded failures, so that these trials run again.

    Raises:
        BadInput: the file is the journal of another search, or not a journal.
        JournalError: it was written by another version.
    """

    def __init__(self, path: Path | str, search_id: str, *, contents: str = "", retry: bool = False):
        self._records = Records(path)
        self._arrays: dict[bytes, np.ndarray[Any, Any]] = {}
        self._known: dict[str, Result | Failure] = {}
        try:
            self._read(search_id, contents, retry)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._known)

    @property
    def nfe(self) -> float:
        """NFE of the recorded trials."""
        return sum(known.usage.nfe for known in self._known.values() if isinstance(known, Result))

    def find(self, name: str) -> Result | Failure | None:
        """Return what the trial ``name`` returned or failed with; None where it is not recorded."""
        return self._known.get(name)

    def add(self, name: str, outcome: Result | Failure) -> None:
        """Record what a trial returned or failed with. Known trials are left out, and work that was not done: that of
        a closed pool, and work that was lost with its workers.

        Raises:
            JournalError: it cannot be written.
        """
        if name in self._known or isinstance(outcome, PoolClosed | LostWork):
            return
        fresh: dict[bytes, list[Any]] = {}
        body = str(outcome) if isinstance(outcome, Failure) else _pack(outcome, self._arrays, fresh)
        self._records.append(msgpack.packb([name, fresh, body]))
        self._known[name] = outcome

    def close(self) -> None:
        """Close the file; it can be opened again."""
        self._records.close()

    def remove(self) -> None:
        """Close and delete the file."""
        self._records.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, search_id: str, contents: str, retry: bool) -> None:
        records = iter(self._records)
        first = next(records, None)
        if first is None:
            self._records.append(f"{search_id} {contents}".strip().encode())
            return
        known_id, _, known_contents = first.decode(errors="replace").partition(" ")
        if known_id != search_id:
            raise BadInput(
                f"{self._records.path} is the journal of another search: it was started with other arguments or by another "
                f"version (search {known_id!r}, this is {search_id!r})"
            )
        if contents and known_contents != contents:
            raise BadInput(
                f"{self._records.path} cannot be resumed: a file of the model, a plug-in or the version of lotts-search has "
                "changed since it was started"
            )
        try:
            for record in records:
                name, fresh, body = msgpack.unpackb(record, strict_map_key=False)
                for key, (kind, shape, data) in fresh.items():
                    # A bytearray makes the array writable, like those that a pool returns.
                    self._arrays[key] = np.frombuffer(bytearray(data), kind).reshape(shape)
                if not isinstance(body, str):
                    self._known[name] = _unpack(body, self._arrays)
                elif not retry:
                    self._known[name] = Failure(body)
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise JournalError(
                f"{self._records.path} was written by another version of lotts-search: {error}"
            ) from error


def _pack(value: object, written: dict[bytes, np.ndarray[Any, Any]], fresh: dict[bytes, list[Any]]) -> bytes:
    """Return ``value`` as msgpack. Arrays that are not ``written`` yet are added to both dictionaries."""

    def special(found: object) -> object:
        if isinstance(found, tuple):
            return msgpack.ExtType(_TUPLE, pack(list(found)))
        if isinstance(found, np.ndarray):
            array = np.ascontiguousarray(found)
            head = f"{array.dtype.str}{array.shape}".encode()
            key = blake2b(array.data.cast("B") if array.size else b"", digest_size=16, key=head[:64]).digest()
            if key not in written:
                written[key] = array
                fresh[key] = [array.dtype.str, array.shape, array.tobytes()]
            return msgpack.ExtType(_ARRAY, key)
        if isinstance(found, np.generic):
            return found.item()
        name = type(found).__name__
        if _KNOWN.get(name) is not type(found):
            raise JournalError(f"a journal cannot hold {type(found).__module__}.{name}")
        state = {field.name: getattr(found, field.name) for field in dataclasses.fields(_KNOWN[name])}
        return msgpack.ExtType(_OBJECT, pack([name, state]))

    def pack(found: object) -> bytes:
        packed: bytes = msgpack.packb(found, default=special, strict_types=True)
        return packed

    return pack(value)


def _unpack(data: bytes, arrays: dict[bytes, np.ndarray[Any, Any]]) -> Any:
    def special(code: int, packed: bytes) -> Any:
        if code == _ARRAY:
            return arrays[packed]
        value = unpack(packed)
        if code == _TUPLE:
            return tuple(value)
        name, state = value
        return _KNOWN[name](**state)

    def unpack(packed: bytes) -> Any:
        return msgpack.unpackb(packed, ext_hook=special, strict_map_key=False)

    return unpack(data)
