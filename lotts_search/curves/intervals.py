"""A mean or a share with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval; with a single value, both ends equal the mean."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def signed(self) -> str:
        """The interval with explicit signs, for a difference."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def binary(values: Doubles) -> bool:
    """Return whether all values are 0 or 1 (NaN aside), so that their mean is a share."""
    known = values[~np.isnan(values)]
    return bool(known.size and ((known == 0) | (known == 1)).all())


def share_interval(share: float, count: int, confidence: float = 0.95) -> Interval:
    """Return a share of ``count`` independent cases, 0..1, with Wilson's interval (Wilson 1927).

    It does not collapse at a share of 0 or 1. If some cases count in part, e.g. as half, it is conservative.
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(max(share * (1 - share), 0.0) / count + z * z / (4 * count * count))
    # Rounding must not push an end past the share itself.
    return Interval(share, max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0))


def share_difference(ours: Doubles, theirs: Doubles, confidence: float = 0.95) -> Interval:
    """Return the mean difference of two paired shares [prompts], each 0..1, with its interval.

    The ends of the two Wilson intervals are combined as for paired proportions: Newcombe 1998, "Improved confidence
    intervals for the difference between binomial proportions based on paired data", method 10 without its continuity
    correction.
    """
    a, b = (share_interval(float(values.mean()), values.size, confidence) for values in (ours, theirs))
    spread = float(ours.std() * theirs.std())
    phi = float(((ours - a.mean) * (theirs - b.mean)).mean()) / spread if spread > 0 else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = a.mean - b.mean
    low = difference - reach(a.mean - a.low, b.high - b.mean)
    return Interval(difference, low, difference + reach(a.high - a.mean, b.mean - b.low))


def interval(values: Sequence[float] | Doubles, confidence: float = 0.95) -> Interval:
    """Return the mean of ``values`` with its two-sided Student's t interval. For shares use :func:`share_interval`.

    Raises:
        ValueError: ``values`` is empty.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("an interval needs at least one value")
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, mean, mean)
    half = float(stats.t.ppf((1 + confidence) / 2, array.size - 1) * array.std(ddof=1) / np.sqrt(array.size))
    return Interval(mean, mean - half, mean + half)
