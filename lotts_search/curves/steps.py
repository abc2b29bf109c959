"""Best-so-far curves as step functions, and the mean of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lotts_search.curves.intervals import Doubles, interval


@dataclass(frozen=True)
class StepFunction:
    """A right-continuous step function: ``y[i]`` from ``x[i]`` on, NaN before ``x[0]``."""

    x: Doubles
    y: Doubles

    def at(self, grid: Doubles) -> Doubles:
        """Return the values at ``grid``, in its shape."""
        if self.x.size == 0:
            return np.full(grid.shape, np.nan)
        index = np.searchsorted(self.x, grid, side="right") - 1
        return np.where(index < 0, np.nan, self.y[np.maximum(index, 0)])


@dataclass(frozen=True)
class Curve:
    """A mean curve with its 95 % interval: costs ``x`` [n], and ``mean``, ``low`` and ``high`` [n] at these costs."""

    x: Doubles
    mean: Doubles
    low: Doubles
    high: Doubles


def mean_curve(steps: Sequence[StepFunction], points: int = 200) -> Curve:
    """Return the mean over searches wherever all of them have a value.

    A search that has ended keeps its last value. The mean is taken wherever one of the functions changes, or at
    ``points`` evenly spaced costs if there are more changes than that. Intervals are Student's t.
    """
    steps = [s for s in steps if s.x.size]
    if not steps:
        return Curve(*(np.empty(0),) * 4)
    start, stop = max(s.x[0] for s in steps), max(s.x[-1] for s in steps)
    grid = np.unique(np.concatenate([s.x for s in steps]))
    grid = grid[grid >= start]
    if grid.size > points:
        grid = np.linspace(start, stop, points)
    intervals = [interval(column) for column in np.stack([s.at(grid) for s in steps]).T]
    return Curve(
        grid,
        np.array([i.mean for i in intervals]),
        np.array([i.low for i in intervals]),
        np.array([i.high for i in intervals]),
    )
