"""How many rows the batched calls of a worker have: always the same number, or the smallest of several.

Numerical libraries choose their kernels by the size of a batch, so the bits of a row depend on it. With one size, which unused
rows fill, results are the same whatever else runs. With several a worker that has little to do computes less, but the bits of
a result depend on how much it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

from lotts_search.errors import BadInput

Batch: TypeAlias = int | Sequence[int]
"""One size of all calls, or the sizes that they may have."""

ROWS = 8
"""Rows of a call where nobody says otherwise: on a CPU more make no row cheaper, and a search alone seldom has more."""


@dataclass(frozen=True)
class BatchSizes:
    """The sizes that a call may have.

    Attributes:
        sizes: rows of a call, rising.

    Raises:
        BadInput: there is none, or one is not a whole number of 1 or more.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        wrong = [size for size in self.sizes if isinstance(size, bool) or not isinstance(size, int) or size < 1]
        if wrong or not self.sizes:
            raise BadInput(f"a batch has 1 row or more, not {', '.join(map(str, wrong)) or 'none'}")
        object.__setattr__(self, "sizes", tuple(sorted(set(self.sizes))))

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Return the sizes that ``batch`` names."""
        return cls(tuple(batch) if isinstance(batch, Sequence) else (batch,))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the sizes of a text such as ``8`` or ``2,4,8,16``."""
        try:
            sizes = tuple(int(size) for size in text.split(","))
        except ValueError:
            raise BadInput(f"not a batch: {text!r}; give rows as 8, or several sizes as 2,4,8,16") from None
        return cls(sizes)

    @property
    def most(self) -> int:
        """The largest size."""
        return self.sizes[-1]

    @property
    def batch(self) -> Batch:
        """The number, or the list of several, that :meth:`of` takes."""
        return self.most if len(self.sizes) == 1 else list(self.sizes)

    def holding(self, rows: int) -> int:
        """Return the smallest size that holds so many rows, which are at most the largest."""
        return next(size for size in self.sizes if size >= rows)

    def up_to(self, most: int) -> BatchSizes:
        """Return the sizes of an operation that takes at most ``most`` rows: that one, and where there are several, smaller ones."""
        return BatchSizes((*(size for size in self.sizes[:-1] if size < most), most))

    def __str__(self) -> str:
        return ",".join(map(str, self.sizes))
