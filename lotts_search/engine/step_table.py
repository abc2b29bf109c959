"""The numbers of every step of every schedule in use, in one table, so that one look-up serves a whole batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lotts_search.backbones.base import Backbone
from lotts_search.engine.solver import coefficients
from lotts_search.work.requests import Floats, Sampling, Solver

TIMESTEP, ALPHA, SIGMA, SOLVER, NEXT_ALPHA, NEXT_SIGMA = 0, 1, 2, slice(3, 7), 7, 8
MASKED = 9
"""A column for the caller: whether the background is restored from the parent after the step."""
COMPARED = 10
"""A column for the caller: 1 where the step's x0 prediction is compared with the previous one, else 0."""
COLUMNS = 11
FIRST_ORDER, SECOND_ORDER, PREVIEW = range(3)
"""Sections of a schedule in the table: steps without and with solver history, and network calls that move nothing."""


class StepTable:
    """Grows by one part for each combination of steps, eta and solver.

    Attributes:
        values: [rows, COLUMNS] float32. The row of step i of T in a section is ``place + section·T + i``.
    """

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self._places: dict[tuple[int, float, Solver], int] = {}
        self.values: Floats = np.empty((0, COLUMNS), np.float32)

    def place(self, sampling: Sampling) -> int:
        """Return the row where the settings' part begins."""
        key = sampling.steps, sampling.eta, sampling.solver
        if key not in self._places:
            part = self._part(*key).reshape(-1, COLUMNS).astype(np.float32)
            self._places[key] = len(self.values)
            self.values = np.concatenate([self.values, part])
        return self._places[key]

    def _part(self, steps: int, eta: float, solver: Solver) -> npt.NDArray[np.float64]:
        schedule = self._backbone.schedule(steps)
        part = np.zeros((3, steps, COLUMNS))
        part[:, :, TIMESTEP] = schedule.timestep
        part[:, :, ALPHA], part[:, :, SIGMA] = schedule.alpha[:-1], schedule.sigma[:-1]
        part[:2, :, SOLVER] = coefficients(schedule, eta, solver)
        part[PREVIEW, :, SOLVER] = (1, 0, 0, 0)
        part[:, :, NEXT_ALPHA], part[:, :, NEXT_SIGMA] = schedule.alpha[1:], schedule.sigma[1:]
        # The background of a finished image is the parent, wherever the schedule stops.
        part[:, -1, NEXT_ALPHA], part[:, -1, NEXT_SIGMA] = 1, 0
        return part
