"""The settings of a strategy that are worth tuning, and the values to try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Span:
    """Numbers between two ends.

    Attributes:
        low, high: the ends, both included.
        log: spread evenly by ratio instead of by difference; ``low`` is then above 0.
    """

    low: float
    high: float
    log: bool = False

    def at(self, share: float) -> float:
        """Return the number at this share of the way, 0..1, with three significant digits."""
        value = self.low + share * (self.high - self.low)
        if self.log:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return float(f"{value:.3g}")

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


Space: TypeAlias = Mapping[str, Span | Sequence[object]]
"""By setting, the numbers or the choices to try."""


def tunable(**settings: Span | Sequence[object]) -> Space:
    """Return the space of these settings."""
    return MappingProxyType(settings)


def value_at(values: Span | Sequence[Any], share: float) -> Any:
    """Return the value at a share of the way through numbers or choices, 0 or more and below 1."""
    return values.at(share) if isinstance(values, Span) else values[int(share * len(values))]
