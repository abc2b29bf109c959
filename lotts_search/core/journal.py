"""The journal of a search: what its finished trials returned, so that the search can be replayed.

A file of :class:`~lotts_search.core.records.Records`. Contents are msgpack: dataclasses of
:mod:`lotts_search.work.requests` by name, and arrays by the hash of their bytes, written once per file however many states
share them. Nothing in it is ever executed. A journal remembers where its arrays are, and reads them back when they are
needed, so that it takes no memory for them.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Self

import msgpack
import numpy as np

from lotts_search.core.records import JournalError, Part, Records
from lotts_search.errors import BadInput, Failure, LostWork, PoolClosed
from lotts_search.work import requests as work
from lotts_search.work.requests import Result

_TUPLE, _OBJECT, _ARRAY = 1, 2, 3
_KNOWN = {name: cls for name, cls in vars(work).items() if isinstance(cls, type) and dataclasses.is_dataclass(cls)}
_BIN32 = struct.Struct(">BI")


class _Array(NamedTuple):
    """Where an array is in the file."""

    kind: str
    shape: tuple[int, ...]
    at: int

    @property
    def nbytes(self) -> int:
        return int(np.dtype(self.kind).itemsize * np.prod(self.shape, dtype=np.int64))


class Journal:
    """What the finished trials of one search returned, by name. Its methods may be called in any thread.

    Args:
        path: the file; an existing one is read and continued, a missing one is created.
        search_id: id of the search that it belongs to.
        contents: fingerprint of the files and the code that decide it; "" = not compared.
        retry: forget the recorded failures, so that these trials run again.

    Attributes:
        nfe: NFE of the recorded trials.

    Raises:
        BadInput: the file is the journal of another search, or not a journal.
        JournalError: it was written by another version.
    """

    def __init__(self, path: Path | str, search_id: str, *, contents: str = "", retry: bool = False):
        self.nfe = 0.0
        self._records = Records(path)
        self._lock = Lock()
        self._arrays: dict[bytes, _Array] = {}
        self._known: dict[str, tuple[int, int] | Failure] = {}
        try:
            self._read(search_id, contents, retry)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def find(self, name: str) -> Result | Failure | None:
        """Return what the trial ``name`` returned or failed with; None where it is not recorded.

        Raises:
            JournalError: it cannot be read, e.g. because another version wrote it.
        """
        place = self._known.get(name)
        if place is None or isinstance(place, Failure):
            return place
        found: Result = self._filled(self._unpacked(self._records.read(*place)))
        return found

    def part(self, name: str, field: str) -> Any:
        """Return one field of a recorded result; its other arrays are not read."""
        place = self._known[name]
        assert not isinstance(place, Failure)
        return self._filled(getattr(self._unpacked(self._records.read(*place)), field))

    def add(self, name: str, outcome: Result | Failure) -> None:
        """Record what a trial returned or failed with. Known trials are left out, and work that was not done: that of
        a closed pool, and work that was lost with its workers.

        Raises:
            JournalError: it cannot be written.
        """
        if name in self._known or isinstance(outcome, PoolClosed | LostWork):
            return
        packer = _Packer()
        body = msgpack.packb(str(outcome) if isinstance(outcome, Failure) else packer.result(outcome))
        with self._lock:
            if name in self._known:
                return
            fresh = {key: array for key, array in packer.arrays.items() if key not in self._arrays}
            parts: list[Part] = [b"\x93" + msgpack.packb(name) + msgpack.Packer().pack_map_header(len(fresh))]
            begin = {}
            for key, array in fresh.items():
                about = msgpack.packb(array.dtype.str) + msgpack.packb(array.shape)
                parts.append(msgpack.packb(key) + b"\x93" + about + _BIN32.pack(0xC6, array.nbytes))
                begin[key] = sum(map(len, parts))
                parts.append(_bytes(array))
            at = self._records.append(*parts, body)
            for key, array in fresh.items():
                self._arrays[key] = _Array(array.dtype.str, array.shape, at + begin[key])
            where = at + sum(map(len, parts)), len(body)
            self._known[name] = outcome if isinstance(outcome, Failure) else where
            self.nfe += outcome.usage.nfe if isinstance(outcome, Result) else 0.0

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
        places = self._records.places()
        first = next(places, None)
        if first is None:
            self._records.append(f"{search_id} {contents}".strip().encode())
            return
        known_id, _, known_contents = self._records.read(*first).decode(errors="replace").partition(" ")
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
        for at, length in places:
            self._index(at, self._records.read(at, length), retry)

    def _index(self, at: int, record: bytes, retry: bool) -> None:
        """Remember where a record has its arrays and its body."""
        reader = msgpack.Unpacker(strict_map_key=False, max_buffer_size=len(record))
        reader.feed(record)
        try:
            reader.read_array_header()
            name = reader.unpack()
            for _ in range(reader.read_map_header()):
                key = reader.unpack()
                reader.read_array_header()
                array = _Array(reader.unpack(), tuple(reader.unpack()), 0)
                reader.skip()
                self._arrays[key] = array._replace(at=at + reader.tell() - array.nbytes)
            begin = reader.tell()
            body = reader.unpack()
            if not isinstance(body, str):
                self._known[name] = at + begin, len(record) - begin
                self.nfe += self._unpacked(record[begin:]).usage.nfe
            elif not retry:
                self._known[name] = Failure(body)
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
            raise self._foreign(error) from error

    def _unpacked(self, body: bytes) -> Result:
        """Return a result with the places of its arrays instead of them."""
        try:
            found = _unpack(msgpack.unpackb(body), self._arrays)
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise self._foreign(error) from error
        if not isinstance(found, Result):
            raise self._foreign(f"a record holds {type(found).__name__}")
        return found

    def _filled(self, value: Any) -> Any:
        """Return a value with the arrays that belong into their places."""
        if isinstance(value, _Array):
            # A bytearray makes the array writable, like those that a pool returns.
            data = bytearray(self._records.read(value.at, value.nbytes))
            return np.frombuffer(data, value.kind).reshape(value.shape)
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(map(self._filled, value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for name, item in vars(value).items():
                if not isinstance(item, int | float | str | None):
                    object.__setattr__(value, name, self._filled(item))
        return value

    def _foreign(self, error: object) -> JournalError:
        return JournalError(f"{self._records.path} was written by another version of lotts-search: {error}")


def _bytes(array: np.ndarray[Any, Any]) -> Part:
    return array.data.cast("B") if array.size else b""


class _Packer:
    """Packs a value as msgpack, with the hashes of its arrays, which are in ``arrays`` then. (Nested functions that call each
    other would be a cycle, and the arrays would wait for the garbage collector.)"""

    def __init__(self) -> None:
        self.arrays: dict[bytes, np.ndarray[Any, Any]] = {}
        self._seen: dict[int, bytes] = {}

    def result(self, value: Result) -> bytes:
        image = value.image
        if image is not None and value.image_hash and image.flags.c_contiguous:
            self._see(image, value.image_hash.encode(), image)  # one that was hashed for its name needs no second hash
        return self.pack(value)

    def pack(self, found: object) -> bytes:
        packed: bytes = msgpack.packb(found, default=self._special, strict_types=True)
        return packed

    def _see(self, found: np.ndarray[Any, Any], key: bytes, array: np.ndarray[Any, Any]) -> None:
        self._seen[id(found)], self.arrays[key] = key, array

    def _special(self, found: object) -> object:
        if isinstance(found, tuple):
            return msgpack.ExtType(_TUPLE, self.pack(list(found)))
        if isinstance(found, np.ndarray):
            if id(found) not in self._seen:
                array = np.ascontiguousarray(found)
                head = f"{array.dtype.str}{array.shape}".encode()
                self._see(found, blake2b(_bytes(array), digest_size=16, key=head[:64]).digest(), array)
            return msgpack.ExtType(_ARRAY, self._seen[id(found)])
        if isinstance(found, np.generic):
            return found.item()
        name = type(found).__name__
        if _KNOWN.get(name) is not type(found):
            raise JournalError(f"a journal cannot hold {type(found).__module__}.{name}")
        state = {field.name: getattr(found, field.name) for field in dataclasses.fields(_KNOWN[name])}
        return msgpack.ExtType(_OBJECT, self.pack([name, state]))


def _unpack(data: bytes, arrays: Mapping[bytes, _Array]) -> Any:
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
