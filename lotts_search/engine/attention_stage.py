"""Attention: localizations whose rows run in network calls of their own, while their attention is read."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial

from lotts_search.backbones.attention.base import RowAttention
from lotts_search.engine.jobs import Job
from lotts_search.engine.stage import Shared, Stage
from lotts_search.engine.transfer import Watch
from lotts_search.localization.plan import AttentionPlan, AttentionRow, attend_rows
from lotts_search.work.fitting import Fitting
from lotts_search.work.requests import Locate

CAPTURE_ROWS = {"cuda": 24}
"""Rows of one padded attention call by device, where the fixed cost of a call is large, so that several localizations
share one. Elsewhere each localization has its own call, without padding."""


@dataclass(eq=False)
class _AttentionJob:
    job: Job[Locate]
    plan: AttentionPlan

    def shares_calls_with(self, other: _AttentionJob) -> bool:
        return (self.plan.grid, self.plan.blocks) == (other.plan.grid, other.plan.blocks)


class AttentionStage(Stage):
    """Runs localizations by attention.

    Args:
        rows: network rows in one padded call, None = by device; 0 = as many as a localization has.
    """

    def __init__(self, shared: Shared, rows: int | None):
        super().__init__(shared)
        self._rows = min(shared.max_batch, CAPTURE_ROWS.get(shared.device.type, 0) if rows is None else rows)
        self._sizes = shared.sizes.up_to(self._rows or shared.max_batch)
        self._fitting = Fitting(f"the attention of {self.backbone.info.name}")
        self._queue: deque[_AttentionJob] = deque()

    def add(self, job: Job[Locate], plan: AttentionPlan) -> None:
        self._queue.append(_AttentionJob(job, plan))

    def tick(self) -> bool:
        if not self._queue:
            return False
        batch = [self._queue.popleft()]
        count = len(batch[0].plan.rows)
        limit = self._rows if self.shared.pad else self.shared.max_batch
        while self._queue and self._queue[0].shares_calls_with(batch[0]):
            count += len(self._queue[0].plan.rows)
            if count > limit:
                break
            batch.append(self._queue.popleft())
        self.jobs.isolate(batch, self._read, lambda item: [item.job])
        return True

    def discard(self, gone: set[int]) -> None:
        self._queue = deque(item for item in self._queue if id(item.job) not in gone)

    def clear(self) -> None:
        self._queue.clear()

    def _read(self, batch: list[_AttentionJob]) -> None:
        watch, now = Watch(self.device), time.time()
        pairs = [(item.job, row) for item in batch for row in item.plan.rows]
        padded = self.shared.pad and self._rows
        # Without a fixed size a padded localization has calls of its own, so their size depends on it alone.
        size = self._rows if padded else self.shared.max_batch
        seen: list[RowAttention] = []
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            used = len(part)
            part += part[:1] * (self.shared.filled(used, self._sizes) - used if padded else 0)

            found = self._fitting.run(len(part), partial(self._attend, batch[0].plan, part))
            seen += [attention for some in found for attention in some][:used]
        watch.stop()
        self.shared.landings.then(partial(self._finish, batch, seen, watch, now))

    def _attend(
        self, plan: AttentionPlan, pairs: list[tuple[Job[Locate], AttentionRow]], rows: slice
    ) -> list[RowAttention]:
        known = [job.conditioning for job, _ in pairs[rows]]
        return attend_rows(self.backbone, [row for _, row in pairs[rows]], plan, known)

    def _finish(self, batch: list[_AttentionJob], seen: list[RowAttention], watch: Watch, started: float) -> None:
        share = watch.seconds / len(seen)
        first = 0
        for item in batch:
            job, end = item.job, first + len(item.plan.rows)
            job.started = started
            self.jobs.charge(job, end - first, share)
            self.jobs.locate(job, partial(item.plan.finish, seen[first:end]))
            first = end
