"""API keys, and how much each may spend."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from lotts_search.errors import BadInput
from lotts_search.serve.errors import ApiError

VARIABLE = "LOTTS_SERVE_KEYS"
"""Environment variable with keys, ``NAME KEY`` separated by semicolons, for clusters that hand out secrets so."""


class Keys:
    """The API keys of a server. Only their hashes are kept.

    Args:
        keys: by the name of their owner; none = everyone may come in.
    """

    def __init__(self, keys: Mapping[str, str]):
        self._hashes = {name: _hash(key.encode()) for name, key in keys.items()}

    @classmethod
    def load(cls, path: Path | None) -> Keys:
        """Read a file with ``NAME KEY`` a line, and the variable :data:`VARIABLE`.

        Raises:
            BadInput: the file cannot be read, or a line is wrong.
        """
        try:
            lines = [] if path is None else path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot read the API keys in {path}: {error}") from error
        found: dict[str, str] = {}
        for number, line in enumerate([*lines, *os.environ.get(VARIABLE, "").split(";")], 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            words = line.split()
            if len(words) != 2 or words[0] in found or len(words[1]) < 16:
                raise BadInput(
                    f"API keys, line {number}: must be NAME KEY, each name once, each key 16 characters or more"
                )
            found[words[0]] = words[1]
        if path is not None and not found:
            raise BadInput(f"there is no API key in {path}")
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, authorization: str | None) -> str | None:
        """Return the name of the key in a header ``Authorization``, ``Bearer KEY`` or, as browsers ask for it, ``Basic`` with
        the key as password; None without a valid one. The time that it takes says nothing about the keys."""
        given = _hash(_key(authorization or ""))
        matches = [name for name, kept in self._hashes.items() if hmac.compare_digest(given, kept)]
        return matches[0] if matches else None


def _key(authorization: str) -> bytes:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2] if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return b""


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Quota:
    """NFE of each key in a sliding window of time. What a request may use is taken beforehand, and what it did not use is
    given back.

    Args:
        limit: NFE in a window; None = no limit.
        window_s: seconds.
        clock: monotonic time.
    """

    def __init__(self, limit: float | None, window_s: float, clock: Callable[[], float] = time.monotonic):
        self._limit, self._window_s, self._clock = limit, window_s, clock
        self._spent: dict[str, deque[tuple[float, float]]] = {}
        self._held: dict[str, float] = {}

    def left(self, name: str) -> float | None:
        """Return the NFE that a key has left now; None = no limit."""
        if self._limit is None:
            return None
        spent = self._spent.get(name, deque())
        while spent and spent[0][0] <= self._clock() - self._window_s:
            spent.popleft()
        return max(0.0, self._limit - self._held.get(name, 0.0) - sum(nfe for _, nfe in spent))

    def take(self, name: str, nfe: float) -> None:
        """Take NFE for a request.

        Raises:
            ApiError: 429, there are not so many left.
        """
        left = self.left(name)
        if left is not None and nfe > left:
            raise ApiError(
                429,
                f"this request may cost {nfe:g} NFE, and {left:g} of {self._limit:g} in {self._window_s:g} s are left",
                code="quota_exceeded",
                retry_s=self._wait(name),
            )
        self._held[name] = self._held.get(name, 0.0) + nfe

    def settle(self, name: str, taken: float, used: float) -> None:
        """Give back what a request has taken, and charge what it used."""
        self._held[name] -= taken
        if self._limit is not None and used:
            self._spent.setdefault(name, deque()).append((self._clock(), used))

    def _wait(self, name: str) -> float:
        """Return the seconds until the oldest charge leaves the window."""
        spent = self._spent.get(name)
        return max(1.0, spent[0][0] + self._window_s - self._clock()) if spent else 1.0
