"""Best-so-far curves as step functions, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lotts_search.curves.intervals import Doubles, interval


@dataclass(frozen=True)
class Steps:
    """A right-continuous step function: ``y[i]`` from ``x[i]`` on, undefined (NaN) before ``x[0]``."""

    x: Doubles
    y: Doubles

    def at(self, grid: Doubles) -> Doubles:
        """Values at ``grid``."""
        if self.x.size == 0:
            return np.full(grid.shape, np.nan)
        index = np.searchsorted(self.x, grid, side="right") - 1
        return np.where(index < 0, np.nan, self.y[np.maximum(index, 0)])


@dataclass(frozen=True)
class Curve:
    """Mean of several step functions, a step function itself, with its 95 % interval, all [n]."""

    x: Doubles
    mean: Doubles
    low: Doubles
    high: Doubles


def mean_curve(steps: Sequence[Steps], points: int = 200) -> Curve:
    """The mean over searches where all of them are defined: from the latest first value to the latest last one.

    A search that ended keeps its last value, as it would be handed out. The mean is taken at every place where one of
    the functions changes, or at ``points`` evenly spaced ones where those are more.
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
