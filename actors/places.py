"""Which worker takes the next task: the least loaded one with room, in about the same time however many there are. No Ray here."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from lotts_search.actors.crew import Member
from lotts_search.actors.tasks import Task


class Places:
    """The workers of a group that may get tasks.

    A heap has them by load. An entry is left in it when its worker's load changes, and is skipped when its turn comes. While all
    workers are full, only those whose load has changed since are looked at.

    Args:
        batch: rows that a worker computes at once.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._heap: list[tuple[tuple[float, int], int, Member]] = []
        self._numbers: dict[Member, int] = {}
        self._full = 0
        self._changed: dict[Member, None] = {}

    def reset(self, members: Iterable[Member]) -> None:
        """Take these workers from now on; among equals the first is chosen."""
        self._numbers = {member: number for number, member in enumerate(members)}
        self._full = 0
        self._rebuild()

    def changed(self, member: Member) -> None:
        """Note that a worker has got a task or has ended one."""
        if member not in self._numbers:
            return
        if self._full:
            self._changed[member] = None
        heapq.heappush(self._heap, self._entry(member))
        if len(self._heap) > 4 * len(self._numbers) + 16:
            self._rebuild()

    def best(self, task: Task) -> Member | None:
        """Return the least loaded worker with room for a task that may be in any company; None where there is none."""
        if task.rows <= self._full:  # the fewer rows a task has, the fewer workers take it
            free = [member for member in self._changed if member.takes(task, self._batch)]
            if not free and task.rows == self._full:
                self._changed.clear()
            return min(free, key=self._entry, default=None)
        passed = []
        found = None
        while self._heap and found is None:
            entry = heapq.heappop(self._heap)
            if entry[0] == entry[2].load:
                passed.append(entry)
                found = entry[2] if entry[2].takes(task, self._batch) else None
        for entry in passed:
            heapq.heappush(self._heap, entry)
        if found is None:
            self._full = task.rows
            self._changed.clear()
        return found

    def _entry(self, member: Member) -> tuple[tuple[float, int], int, Member]:
        return member.load, self._numbers[member], member

    def _rebuild(self) -> None:
        self._heap = [self._entry(member) for member in self._numbers]
        heapq.heapify(self._heap)
