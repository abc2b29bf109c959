"""The network: one call stacks all running trajectories, and the rows of localizations fill the room left over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lotts_search.backbones.base import stays_put
from lotts_search.backbones.confined import Confines
from lotts_search.engine.groups import Groups
from lotts_search.engine.jobs import Job, Prompted
from lotts_search.engine.network_calls import NetworkCalls
from lotts_search.engine.segments import preview, segment, start_state
from lotts_search.engine.stage import Shared, Stage
from lotts_search.engine.trajectories import Arrived, Moved, Trajectories
from lotts_search.engine.transfer import Watch, upload
from lotts_search.errors import Failure
from lotts_search.localization.plan import PredictionPlan, PredictionRow
from lotts_search.work.requests import Floats, Generate, Locate, Predict, Segment, State

Show = Callable[[Job[Generate], Tensor, State], None]
"""Decodes a latent [C, H, W] and answers the job with the state and the image."""


@dataclass(eq=False)
class _Localization:
    """A localization by plain network calls, with the outputs [C, H, W] of its rows so far."""

    job: Job[Locate]
    plan: PredictionPlan
    outputs: list[Tensor] = field(default_factory=list)


class _Probe(NamedTuple):
    """One row of a localization."""

    owner: _Localization
    row: PredictionRow


class NetworkStage(Stage):
    """Runs segments, previews of x0 and localizations by plain network calls.

    Args:
        graphs: record the network call as a CUDA graph, where that is possible.
        show: takes over what is to be decoded.
        frozen: bytes of the cache of frozen tokens, see :class:`~lotts_search.engine.groups.Groups`.
    """

    def __init__(self, shared: Shared, graphs: bool, show: Show, frozen: int):
        super().__init__(shared)
        self._show = show
        recorded = (
            graphs
            and shared.pad
            and len(shared.sizes.sizes) == 1
            and self.device.type == "cuda"
            and stays_put(self.backbone)
        )
        self._calls = NetworkCalls(self.backbone, recorded)
        # Confined trajectories may fill a call of their own.
        capacity = shared.max_batch * (1 + isinstance(self.backbone, Confines))
        self._running = Trajectories(self.backbone, capacity)
        self._groups = Groups(shared, self._running, frozen)
        self._inputs = torch.zeros(shared.max_batch, *self.backbone.info.latent, device=self.device)
        self._times = torch.zeros(shared.max_batch, device=self.device)
        self._broken: list[Job[Prompted]] = []  # failed, but still in their slots
        self._previews: deque[Job[Predict]] = deque()  # before segments, because searches block on them
        self._segments: deque[Job[Segment]] = deque()
        self._probes: deque[_Probe] = deque()

    def add(self, job: Job[Segment]) -> None:
        self._segments.append(job)

    def add_preview(self, job: Job[Predict]) -> None:
        self._previews.append(job)

    def add_localization(self, job: Job[Locate], plan: PredictionPlan) -> None:
        owner = _Localization(job, plan)
        self._probes.extend(_Probe(owner, row) for row in plan.rows)

    @property
    def crowded(self) -> bool:
        """Whether segments wait for a slot."""
        return bool(self._segments)

    def running_nfe(self) -> dict[int, int]:
        """Return the NFE, not charged yet, that each running job has used, by the job's ``id``."""
        return {id(member.job): calls for member, calls, _ in self._running.progress()}

    def tick(self) -> bool:
        running = self._running
        self.discard(set(map(id, self._broken)))
        self._broken.clear()
        admitted = self._admit()
        self._groups.choose(len(self._probes))
        spare = 0 if self._groups.confined else self.shared.max_batch - running.going_rows
        probes = [self._probes.popleft() for _ in range(min(spare, len(self._probes)))]
        if not running.going_rows and not probes:
            return admitted
        now = time.time()
        for probe in probes:
            probe.owner.job.started = probe.owner.job.started or now
        jobs: list[Job[Prompted]] = [member.job for member in running.going]
        jobs += [probe.owner.job for probe in probes]
        failed: list[Job[Prompted]] = []
        if not self.jobs.attempt(jobs, lambda: failed.extend(self._call(probes))):
            failed = jobs
        self.discard(set(map(id, failed)))
        return True

    def clear(self) -> None:
        for queue in (self._previews, self._segments, self._probes):
            queue.clear()
        self._broken.clear()
        self._running.clear()

    def discard(self, gone: set[int]) -> None:
        """Remove what is left of jobs that were cancelled or failed, also where they run."""
        if not gone:
            return
        members = self._running.members
        self._running.remove([slot for slot, member in enumerate(members) if id(member.job) in gone])
        self._probes = deque(probe for probe in self._probes if id(probe.owner.job) not in gone)
        self._previews = deque(job for job in self._previews if id(job) not in gone)
        self._segments = deque(job for job in self._segments if id(job) not in gone)

    # Joining.

    def _admit(self) -> bool:
        """Let waiting work join while there is room, previews first."""
        admitted = False
        while self._previews or self._segments:
            queue: deque[Job[Predict]] | deque[Job[Segment]] = self._previews or self._segments
            needed = 2 if queue[0].work.sampling.guided else 1
            if not self._fits(queue[0].work, needed):
                break
            job: Job[Segment | Predict] = queue.popleft()
            job.started = time.time()
            admitted = True
            self.jobs.attempt([job], partial(self._join, job))
        return admitted

    def _fits(self, work: Segment | Predict, rows: int) -> bool:
        if isinstance(work, Segment) and work.confined:
            return self._groups.fits(work, rows)
        # A long queue of segments must not keep localizations waiting: they get room before new segments.
        reserved = len(self._probes) if isinstance(work, Segment) else 0
        return self._groups.whole_rows + reserved + rows <= self.shared.max_batch

    def _join(self, job: Job[Any]) -> None:
        work: Segment | Predict = job.work
        if isinstance(work, Predict):
            if work.state.predicted is not None:
                self._decode(job, work.state.predicted, work.state)
                return
            member = preview(job)
        else:
            state = start_state(self.backbone, work)
            if state.step == work.stop:
                self._reached(job, state)
                return
            member = segment(job, state)
        self._running.add(member)
        if not member.preview and member.state.predicted is not None:
            moved = self._running.advance_last(member.state.predicted)
            self.shared.landings.then(partial(self._land, moved, self._running.arrive()))

    # One call.

    def _call(self, probes: list[_Probe]) -> list[Job[Prompted]]:
        """Call the network for everything that runs and ``probes``; return the jobs that failed alone."""
        running = self._running
        watch, going = Watch(self.device), running.going
        first, used = running.going_rows, running.going_rows + len(probes)
        rows = self.shared.filled(used, self.shared.sizes)
        inputs, times = self._inputs[:rows], self._times[:rows]
        conditionings = running.conditionings()
        if going:
            running.fill(inputs, times)
        if probes:
            inputs[first:used] = upload(np.stack([probe.row.latent for probe in probes]), self.device)
            times[first:used] = upload(np.array([probe.row.timestep for probe in probes], np.float32), self.device)
            conditionings = conditionings + [probe.owner.job.conditioning[probe.row.prompt] for probe in probes]
        if used < rows:
            inputs[used:], times[used:] = 0, 0
            conditionings = conditionings + conditionings[:1] * (rows - used)
        output, failed = self._predict(inputs, times, conditionings, probes)
        if output is None:
            return failed
        outputs = list(output[first:used].clone()) if probes else []
        moved = running.advance(output, self._groups.confined) if going else None
        arrived = running.arrive() if going else None
        watch.stop()

        def land() -> None:
            share = watch.seconds / used
            for member in going:
                member.seconds += share * member.rows
            self._land(moved, arrived)
            for probe, found in zip(probes, outputs, strict=True):
                self._landed(probe.owner, found, share)

        self.shared.landings.then(land)
        return failed

    def _predict(
        self, inputs: Tensor, times: Tensor, conditionings: list[Any], probes: list[_Probe]
    ) -> tuple[Tensor | None, list[Job[Prompted]]]:
        """Return the network's output, None if no row came through, and the jobs that failed alone, whose rows are
        zero."""
        members = self._running.going
        owners: list[Job[Prompted]] = [member.job for member in members]
        owners += [member.job for member in members if member.negative is not None]
        owners += [probe.owner.job for probe in probes]
        everyone = list({id(job): job for job in owners}.values())
        output: Tensor | None = None

        def predict(jobs: list[Job[Prompted]]) -> None:
            nonlocal output
            if len(jobs) == len(everyone):
                output = self._calls.predict(inputs, times, conditionings, self._groups.call())
                return
            # The others' rows become padding; these keep their places.
            wanted = set(map(id, jobs))
            kept = [row for row, owner in enumerate(owners) if id(owner) in wanted]
            texts = [conditionings[kept[0]]] * len(conditionings)
            some, then = torch.zeros_like(inputs), torch.zeros_like(times)
            some[kept], then[kept] = inputs[kept], times[kept]
            for row in kept:
                texts[row] = conditionings[row]
            found = self._calls.predict(some, then, texts, self._groups.call(kept))
            output = torch.zeros_like(found) if output is None else output
            output[kept] = found[kept]

        failed = self.jobs.isolate(everyone, predict, lambda job: [job])
        return output, failed

    # Landing.

    def _land(self, moved: Moved | None, arrived: Arrived | None) -> None:
        if moved is not None:
            self._check(moved)
        if arrived is not None:
            self._leave(arrived)

    def _check(self, moved: Moved) -> None:
        """Fail the trajectories whose latents broke in a step; all others continue."""
        for member, step in moved.broken():
            self._broken.append(member.job)
            at = f"step {step} of {member.state.steps} (prompt {member.sampling.prompt!r})"
            self.jobs.fail(member.job, Failure(f"the latent became NaN or infinite at {at}"))

    def _leave(self, arrived: Arrived) -> None:
        """Finish the trajectories that have arrived, unless they failed; images are decoded first."""
        for index, (member, state) in enumerate(zip(arrived.members, arrived.states(), strict=True)):
            job, calls = member.job, int(arrived.calls[index])
            if calls:
                self.jobs.charge_calls(job, calls, member.rows, member.seconds)
            if job.future.done():
                continue
            if member.preview or state.complete:
                self._show(job, arrived.latents[index], state)
            else:
                self.jobs.finish(job, state)

    def _landed(self, owner: _Localization, output: Tensor, seconds: float) -> None:
        """Take a row's output into its localization; the last one finishes it."""
        if owner.job.future.done():
            return
        self.jobs.charge(owner.job, 1, seconds)
        owner.outputs.append(output)
        if len(owner.outputs) == len(owner.plan.rows):
            self.jobs.locate(owner.job, partial(owner.plan.finish, owner.outputs))

    def _reached(self, job: Job[Segment], state: State) -> None:
        if state.complete:
            self._decode(job, state.latent, state)
        else:
            self.jobs.finish(job, state)

    def _decode(self, job: Job[Generate], latent: Floats, state: State) -> None:
        self._show(job, upload(latent.copy(), self.device), state)
