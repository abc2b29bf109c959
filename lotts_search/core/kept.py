"""What a search keeps of its candidates: images and states by trial, in memory or in the journal's file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import TypeVar

T = TypeVar("T")


class Kept(MutableMapping[str, T]):
    """Values by the id of their trial. Those that were released are read back whenever they are asked for.

    Args:
        read: reads a released value.
    """

    def __init__(self, read: Callable[[str], T]):
        self._read = read
        self._held: dict[str, T | None] = {}

    def release(self, key: str) -> None:
        """Drop a value from memory; ``read`` must know it."""
        self._held[key] = None

    def __getitem__(self, key: str) -> T:
        held = self._held[key]
        return self._read(key) if held is None else held

    def __setitem__(self, key: str, value: T) -> None:
        self._held[key] = value

    def __delitem__(self, key: str) -> None:
        del self._held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        return key in self._held
