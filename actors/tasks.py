"""Pieces of work on their way through a worker group, and how many of them may share a worker. No Ray here.

The death of a worker says little about the tasks that it had: machines are preempted, and one task may take down all beside
it. So a death in company is held against none of them. It halves the company in which each is tried again, until the one
that kills workers is alone on one; only deaths there count against it.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field

from lotts_search.work.requests import Locate, Predict, Result, ScoreMosaics, Segment, Work

SPARE = 2
"""Tasks queued at a worker beyond its batch, so that a free row of the batch is used at the next tick."""


@dataclass(eq=False)
class Task:
    """A piece of work with its tries.

    Attributes:
        order: number of its arrival.
        company: most tasks that a worker may have while it has this one, itself included.
        deaths: deaths of workers that had no other task.
        lost: NFE of lost tries.
    """

    work: Work
    future: Future[Result]
    rows: int
    submitted: float
    order: int
    attempts: int = 0
    company: float = math.inf
    deaths: int = 0
    lost: float = 0.0
    sent: float = 0.0
    answer: Future[Result] | None = None


class Held(set[Task]):
    """The tasks of a worker, with their sums, which each new task asks of each worker.

    Attributes:
        nfe, rows: sums over the tasks.
        wary: number of tasks whose company is limited.
    """

    nfe = 0.0
    rows = wary = 0

    def add(self, task: Task) -> None:
        if task not in self:
            super().add(task)
            self._count(task, 1)

    def discard(self, task: object) -> None:
        if isinstance(task, Task) and task in self:
            super().discard(task)
            self._count(task, -1)

    def clear(self) -> None:
        super().clear()
        self.nfe, self.rows, self.wary = 0.0, 0, 0

    def _count(self, task: Task, sign: int) -> None:
        self.nfe += sign * task.work.nfe
        self.rows += sign * task.rows
        self.wary += sign * (task.company < math.inf)


@dataclass(eq=False)
class Hand:
    """The tasks that a worker has.

    Attributes:
        pace: its time for an NFE, in that of the mean worker of its kind.
    """

    tasks: Held = field(default_factory=Held, kw_only=True)
    pace: float = field(default=1.0, kw_only=True)

    @property
    def load(self) -> tuple[float, int]:
        """Return the time until one more NFE is done, and the number of tasks, to compare in this order (encoding and scoring take no
        NFE). Of idle workers the fastest has the least."""
        return (self.tasks.nfe + 1) * self.pace, len(self.tasks)

    def takes(self, task: Task, batch: int) -> bool:
        """Return whether another task has room in a batch of ``batch`` rows, and may be in the company of these."""
        if self.tasks.rows + task.rows > batch + SPARE * task.rows:
            return False
        company = min(other.company for other in self.tasks) if self.tasks.wary else math.inf
        return len(self.tasks) < min(task.company, company)

    def lose(self, *, died: bool) -> list[Task]:
        """Take all tasks, oldest first; their tries are lost, in full as a dead worker cannot report its progress.

        Args:
            died: the worker is dead, perhaps because of one of them.
        """
        lost = sorted(self.tasks, key=lambda task: task.order)
        self.tasks.clear()
        for task in lost:
            task.lost += task.work.nfe
            if died and len(lost) == 1:
                task.deaths += 1
            elif died:
                task.company = min(task.company, math.ceil(len(lost) / 2))
        return lost


def rows(work: Work, batch: int) -> int:
    """Return how many rows of a batch of ``batch`` rows a piece of work takes while it runs."""
    if isinstance(work, Segment | Predict):
        return 2 if work.sampling.guided else 1
    if isinstance(work, Locate):
        return min(batch, max(1, work.source.rows()))
    if isinstance(work, ScoreMosaics):
        return min(batch, len(work.choices))
    return 1


def described(work: Work) -> str:
    """Name a piece of work in messages."""
    if isinstance(work, Segment):
        return f"a segment of steps {work.start}..{work.stop} ({work.sampling.prompt!r}, {', '.join(work.lineage)})"
    return f"a {type(work).__name__.lower()} task"
