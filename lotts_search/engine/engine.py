"""Continuous batching: everything a generator does, in batched operations of one model.

Each tick does one operation. A network call stacks all running trajectories, of different prompts, steps, masks and
searches, with per-row timesteps; a guided trajectory gives two rows; rows left over go to localizations. New work
joins at the next tick, finished work leaves at once. Attention is read in calls of its own. Prompts (cached), decoding
and encoding are further operations.

With ``pad=True`` every operation has a fixed size, so a row's bits do not depend on what else is in its batch.

On a CUDA device the host runs ahead: what it must know of a tick's outcome (a latent that broke, the numbers of a
trajectory that arrived) is copied while the next ticks are already under way, and seen when it has landed.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lotts_search.backbones.attention.base import RowAttention
from lotts_search.backbones.base import Backbone, device_of, stays_put, tell
from lotts_search.engine.cuda_graphs import Replay
from lotts_search.engine.trajectories import Arrived, Moved, Trajectories, Trajectory, look, start_state
from lotts_search.engine.transfer import Download, Landings, Watch, upload
from lotts_search.errors import BadInput, Failure, LottsError
from lotts_search.localization.error_contrast import PredictionRow
from lotts_search.localization.fusion import FusionLocalization
from lotts_search.localization.locate import PredictionLocalization, attend_rows, begin, prompts_of
from lotts_search.localization.maskgen import AttentionLocalization
from lotts_search.localization.select import in_tokens
from lotts_search.work.requests import (
    Bytes,
    Encode,
    Floats,
    Generate,
    Locate,
    Located,
    Predict,
    Result,
    Segment,
    State,
    Usage,
)

TEXT_BATCH = 4
"""Prompts in one text-encoder call when padded."""
SMALL_IMAGE = 256 * 256
"""Images of up to this many pixels are decoded several at a time, larger ones singly: a batch saves nothing there."""
DECODE_BATCH = {"cpu": 4, "cuda": 16}
"""Small images in one call by device."""
CAPTURE_ROWS = {"cuda": 24}
"""Rows of one padded attention call by device: where a call costs much beside its rows, several localizations share
one. Elsewhere a localization has a call of its own, without padding."""
PATIENCE = 4
"""Ticks that an image waits for others to be decoded with, while no trajectory waits for it."""
GRAPHS = False
"""Whether network calls on a CUDA device are recorded."""
AHEAD = {"cuda": 2}
"""Ticks that the host may be ahead of the device."""

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    """One piece of work in the engine."""

    work: Generate
    future: Future[Result]
    submitted: float
    cost: float
    usage: Usage = field(default_factory=Usage)
    started: float = 0.0
    conditioning: dict[str, Any] = field(default_factory=dict)
    task: AttentionLocalization | PredictionLocalization | None = None
    outputs: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class _Undecoded:
    """A latent [C, H, W] to decode for a job, and the state that goes with the image; since which tick it waits."""

    job: _Job
    latent: Tensor
    state: State
    tick: int


class Engine:
    """Runs :data:`~lotts_search.work.requests.Generate` work on one backbone.

    ``submit`` may be called from any thread, ``tick`` from one thread only.

    Args:
        backbone: the model.
        max_batch: most network rows in one call; guided sampling needs at least 2.
        pad: give every call exactly ``max_batch`` rows (and decode, encode and text calls their own fixed sizes).
        decode_batch: images in one decoder or encoder call, None = 1 for large images, for small ones by device.
        capture_rows: network rows in one padded attention call, None = by device; 0 = a localization's own number.
        graphs: record the network call as a CUDA graph (see :mod:`lotts_search.engine.cuda_graphs`), None = :data:`GRAPHS`; only
            with ``pad`` and on a CUDA device.
        ahead: ticks that the host may run ahead of the device before it looks at their outcome, None = by device.
        prompts: how many encoded prompts are kept.
    """

    def __init__(
        self,
        backbone: Backbone,
        max_batch: int = 16,
        pad: bool = True,
        *,
        decode_batch: int | None = None,
        capture_rows: int | None = None,
        graphs: bool | None = None,
        ahead: int | None = None,
        prompts: int = 256,
    ):
        if max_batch < 1:
            raise BadInput(f"max_batch must be 1 or more, got {max_batch}")
        self.backbone, self.max_batch, self.pad = backbone, max_batch, pad
        self._device = device_of(backbone)
        kind = self._device.type
        pixels = backbone.info.image[0] * backbone.info.image[1]
        small = DECODE_BATCH.get(kind, DECODE_BATCH["cpu"])
        self._decode_batch = decode_batch or min(max_batch, small if pixels <= SMALL_IMAGE else 1)
        self._capture_rows = min(max_batch, CAPTURE_ROWS.get(kind, 0) if capture_rows is None else capture_rows)
        wanted = GRAPHS if graphs is None else graphs
        recorded = wanted and pad and kind == "cuda" and stays_put(backbone)
        self._replay = Replay(backbone) if recorded else None
        self._landings = Landings(self._device, AHEAD.get(kind, 0) if ahead is None else ahead)
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._keep_prompts = max(prompts, TEXT_BATCH)
        self._running = Trajectories(backbone, max_batch)
        self._inputs = torch.zeros(max_batch, *backbone.info.latent, device=self._device)
        self._times = torch.zeros(max_batch, device=self._device)
        self._stacked: tuple[list[Any], Any] = ([], None)
        self._ticks = 0
        self._clock = 0.0  # device seconds of one row that has been in every call
        self._newcomers: list[Trajectory] = []  # since the last call
        self._broken: list[_Job] = []  # found to be, still in their slots

        self._jobs: dict[Future[Result], _Job] = {}
        self._inbox: deque[_Job] = deque()
        self._unread: list[_Job] = []  # prompts not encoded yet
        self._quick: deque[_Job] = deque()  # looks: they go before segments, whose successors wait for them
        self._segments: deque[_Job] = deque()
        self._probes: deque[tuple[_Job, PredictionRow]] = deque()
        self._captures: deque[_Job] = deque()
        self._images: deque[_Undecoded] = deque()
        self._encodes: deque[_Job] = deque()

    def submit(self, work: Generate) -> Future[Result]:
        """Ask for a piece of work; never blocks. The future fails with a :class:`~lotts_search.errors.LottsError`."""
        job = _Job(work, Future(), time.time(), work.nfe)
        self._jobs[job.future] = job
        self._inbox.append(job)
        return job.future

    @property
    def outstanding_nfe(self) -> float:
        """NFE of all work that is asked for and not yet done."""
        done = {id(member.owner): calls for member, calls in self._running.calls()}
        jobs = list(self._jobs.values())
        return sum(max(0.0, job.cost - job.usage.nfe - done.get(id(job), 0)) for job in jobs)

    @torch.inference_mode()
    def tick(self) -> bool:
        """Do one operation: a network call or another batched call. False when there is nothing to do."""
        self._ticks += 1
        took = self._take_in()
        landed = self._landings.settle()
        operations = (self._encode_prompts, self._decode, self._encode_images, self._capture, self._network)
        # Only when there is nothing else to do, the host waits for what is under way.
        return any(operation() for operation in operations) or self._landings.settle(0) or landed or took

    def abort(self, error: LottsError) -> None:
        """Fail all work, e.g. when the engine is closed. Only when no tick is under way."""
        for job in list(self._jobs.values()):
            self._fail(job, error)
        for queue in (self._inbox, self._quick, self._segments, self._captures, self._encodes):
            queue.clear()
        self._probes.clear()
        self._images.clear()
        self._unread.clear()
        self._landings.clear()
        self._newcomers.clear()
        self._broken.clear()
        self._running.clear()

    # Taking in, finishing, failing.

    def _take_in(self) -> bool:
        took = False
        while self._inbox:
            job = self._inbox.popleft()
            took = True
            if job.future.set_running_or_notify_cancel():
                self._attempt([job], lambda job=job: self._receive(job))  # type: ignore[misc]
            else:
                self._jobs.pop(job.future, None)
        return took

    def _receive(self, job: _Job) -> None:
        work = job.work
        check(self.backbone, work)
        if isinstance(work, Encode):
            self._encodes.append(job)
            return
        prompts = [work.sampling.prompt]
        if isinstance(work, Locate):
            answer = begin(self.backbone, work)
            if isinstance(answer, Located):
                job.started = time.time()
                self._finish(job, located=answer)
                return
            if isinstance(answer, FusionLocalization):
                self._divide(job, answer)
                return
            job.task = answer
            prompts = prompts_of(answer)
        elif work.sampling.guided:
            if self.max_batch < 2:
                raise BadInput("max_batch must be 2 or more for guided sampling")
            prompts.append(work.sampling.negative)
        job.conditioning = dict.fromkeys(prompts)
        self._unread.append(job)
        self._sort()

    def _divide(self, job: _Job, task: FusionLocalization) -> None:
        """Locate by each source on its own; the last answer finishes the job, which has used what they used."""
        job.started, job.cost = time.time(), 0.0
        parts = [self.submit(part) for part in task.parts]

        def fuse() -> None:
            found = [part.result() for part in parts]
            for one in found:
                job.usage += one.usage
            self._finish(job, located=task.finish([cast(Located, one.located) for one in found]))

        def arrived(part: Future[Result]) -> None:
            if all(part.done() for part in parts):
                self._attempt([job], fuse)

        for part in parts:
            part.add_done_callback(arrived)

    def _sort(self) -> None:
        """Move work whose prompts are all encoded to its queue."""
        still: list[_Job] = []
        for job in self._unread:
            for prompt, value in job.conditioning.items():
                if value is None and prompt in self._known:
                    self._known.move_to_end(prompt)
                    weight = cast(Segment | Predict | Locate, job.work).sampling.guidance
                    job.conditioning[prompt] = tell(self.backbone, self._known[prompt], weight)
            if any(value is None for value in job.conditioning.values()):
                still.append(job)
            elif isinstance(job.task, AttentionLocalization):
                self._captures.append(job)
            elif job.task is not None:
                self._probes.extend((job, row) for row in job.task.rows)
            else:
                (self._quick if isinstance(job.work, Predict) else self._segments).append(job)
        self._unread = still

    def _finish(
        self, job: _Job, state: State | None = None, image: Bytes | None = None, located: Located | None = None
    ) -> None:
        self._jobs.pop(job.future, None)
        started = job.started or job.submitted
        waited = started - job.submitted
        if located is not None:
            located = in_tokens(located, cast(Locate, job.work).source.ratio, self.backbone.info.patch)
        result = Result(job.usage, state, image, located, queue_s=waited, started=started, finished=time.time())
        with contextlib.suppress(InvalidStateError):  # failed or cancelled meanwhile
            job.future.set_result(result)

    def _fail(self, job: _Job, error: LottsError) -> None:
        self._jobs.pop(job.future, None)
        with contextlib.suppress(InvalidStateError):
            job.future.set_exception(error)

    def _attempt(self, jobs: Iterable[_Job], action: Callable[[], None]) -> bool:
        """Do something for these jobs; if it raises, they fail and nothing else does."""
        try:
            action()
            return True
        except Exception as error:
            self._blame(jobs, error)
            return False

    def _blame(self, jobs: Iterable[_Job], error: Exception) -> None:
        known = error
        if not isinstance(error, LottsError):
            known = Failure(f"model {self.backbone.info.name} failed: {type(error).__name__}: {error}")
            known.__cause__ = error
        for job in jobs:
            self._fail(job, cast(LottsError, known))

    def _isolate(
        self, items: list[T], action: Callable[[list[T]], None], jobs: Callable[[T], Iterable[_Job]]
    ) -> list[T]:
        """Do something for these items at once; if it raises, for each half of them, and so on, so that the jobs of
        only those items fail with which it raises alone. Answers with these items."""
        try:
            action(items)
            return []
        except Exception as error:
            # An error of the device itself stays: more calls would only raise it again.
            if len(items) > 1 and not isinstance(error, torch.AcceleratorError):
                half = len(items) // 2
                return self._isolate(items[:half], action, jobs) + self._isolate(items[half:], action, jobs)
            self._blame([job for item in items for job in jobs(item)], error)
            return items

    # The operations of a tick; each answers whether it did something.

    def _encode_prompts(self) -> bool:
        wanted = dict.fromkeys(
            prompt for job in self._unread for prompt, value in job.conditioning.items() if value is None
        )
        if not wanted:
            return False
        prompts = list(wanted)[:TEXT_BATCH]

        def encode(some: list[str]) -> None:
            padding = [""] * (TEXT_BATCH - len(some) if self.pad else 0)
            encoded = self.backbone.encode_prompts(some + padding)
            self._known.update(zip(some, encoded, strict=False))

        def jobs(prompt: str) -> list[_Job]:
            return [job for job in self._unread if prompt in job.conditioning]

        failed = self._isolate(prompts, encode, jobs)
        if failed:
            self._unread = [job for job in self._unread if job.conditioning.keys().isdisjoint(failed)]
        self._sort()
        while len(self._known) > self._keep_prompts:
            self._known.popitem(last=False)
        return True

    def _decode(self) -> bool:
        count = min(len(self._images), self._decode_batch if self.pad else self.max_batch)
        if not count:
            return False
        if count < self._decode_batch and self._segments and self._ticks - self._images[0].tick < PATIENCE:
            return False

        def decode(batch: list[_Undecoded]) -> None:
            watch = Watch(self._device)
            latents = [image.latent for image in batch]
            latents += [latents[-1]] * (self._decode_batch - len(batch) if self.pad else 0)
            images = self._decoded(torch.stack(latents), not batch[0].state.complete)
            watch.stop()
            self._landings.then(lambda: self._developed(batch, images, watch.seconds / len(batch)))

        batch = [self._images.popleft()]
        while len(batch) < count and self._images[0].state.complete == batch[0].state.complete:
            batch.append(self._images.popleft())
        self._isolate(batch, decode, lambda image: [image.job])
        return True

    def _decoded(self, latents: Tensor, preview: bool) -> Callable[[], npt.NDArray[np.uint8]]:
        """The images of clean latents, to be called for when they have landed."""
        backbone: Any = self.backbone
        if self._device.type == "cuda" and hasattr(backbone, "decode_tensor"):
            download = Download(backbone.decode_tensor(latents, preview))
            return lambda: download.arrays()[0]
        decode = backbone.preview if preview and hasattr(backbone, "preview") else backbone.decode
        images: npt.NDArray[np.uint8] = decode(latents)
        return lambda: images

    def _developed(self, batch: list[_Undecoded], images: Callable[[], npt.NDArray[np.uint8]], seconds: float) -> None:
        for item, image in zip(batch, images(), strict=False):
            item.job.usage.decodes += 1
            item.job.usage.images += int(item.state.complete)
            item.job.usage.device_s += seconds
            self._finish(item.job, item.state, image.copy())

    def _encode_images(self) -> bool:
        if not self._encodes:
            return False
        count = min(len(self._encodes), self._decode_batch if self.pad else self.max_batch)

        def encode(jobs: list[_Job]) -> None:
            began, now = time.perf_counter(), time.time()
            works = [cast(Encode, job.work) for job in jobs]
            images = [work.image for work in works]
            images += [images[-1]] * (self._decode_batch - len(jobs) if self.pad else 0)
            latents = self.backbone.encode(np.stack(images)).cpu().numpy()
            share = (time.perf_counter() - began) / len(jobs)
            for job, work, latent in zip(jobs, works, latents, strict=False):
                job.started, job.usage.device_s = now, share
                # The image itself, not its round trip: it is what a refinement must beat.
                self._finish(job, State(latent.copy(), work.steps, work.steps), work.image)

        self._isolate([self._encodes.popleft() for _ in range(count)], encode, lambda job: [job])
        return True

    def _capture(self) -> bool:
        if not self._captures:
            return False
        jobs = [self._captures.popleft()]
        first = cast(AttentionLocalization, jobs[0].task)
        count = len(first.rows)
        limit = self._capture_rows if self.pad else self.max_batch
        while self._captures:
            task = cast(AttentionLocalization, self._captures[0].task)
            if not task.goes_with(first) or count + len(task.rows) > limit:
                break
            count += len(task.rows)
            jobs.append(self._captures.popleft())

        def capture(jobs: list[_Job]) -> None:
            watch, now = Watch(self._device), time.time()
            pairs = [(job, row) for job in jobs for row in cast(AttentionLocalization, job.task).rows]
            # Without a fixed size a padded localization keeps to itself: its number of rows is its own.
            size = self._capture_rows if self.pad and self._capture_rows else self.max_batch
            seen: list[RowAttention] = []
            for start in range(0, len(pairs), size):
                part = pairs[start : start + size]
                used = len(part)
                part += part[:1] * (size - used if self.pad and self._capture_rows else 0)
                known = [job.conditioning for job, _ in part]
                seen += attend_rows(self.backbone, [row for _, row in part], first, known)[:used]
            watch.stop()

            def finish() -> None:
                for job in jobs:
                    job.started = now
                    task = cast(AttentionLocalization, job.task)
                    own = [seen.pop(0) for _ in task.rows]
                    self._charge(job, len(own), watch.seconds / len(pairs))
                    self._locate(job, lambda own=own, task=task: task.finish(own))  # type: ignore[misc]

            self._landings.then(finish)

        self._isolate(jobs, capture, lambda job: [job])
        return True

    def _locate(self, job: _Job, finish: Callable[[], Located]) -> None:
        """Finish a localization whose network outputs have landed."""

        def located() -> None:
            with self._landings.beside():
                answer = finish()
            self._finish(job, located=answer)

        self._attempt([job], located)

    def _network(self) -> bool:
        running = self._running
        self._discard(self._broken)
        admitted = self._admit()
        spare = self.max_batch - running.rows
        probes = [self._probes.popleft() for _ in range(min(spare, len(self._probes)))]
        if not running.rows and not probes:
            return admitted
        now = time.time()
        for job, _ in probes:
            job.started = job.started or now
        owners = [cast(_Job, member.owner) for member in running.members]
        failed: list[_Job] = []
        everyone = owners + [job for job, _ in probes]
        if not self._attempt(everyone, lambda: failed.extend(self._call(probes))):
            failed = everyone
        self._discard(failed)
        return True

    def _discard(self, jobs: list[_Job]) -> None:
        """Take out what is left in the network's queues of jobs that failed."""
        if not jobs:
            return
        gone, members = set(map(id, jobs)), self._running.members
        self._running.remove([slot for slot, member in enumerate(members) if id(member.owner) in gone])
        self._probes = deque(probe for probe in self._probes if id(probe[0]) not in gone)
        jobs.clear()

    def _call(self, probes: list[tuple[_Job, PredictionRow]]) -> list[_Job]:
        """One network call of everything that runs and ``probes``; answers with the jobs that failed alone."""
        running = self._running
        watch = Watch(self._device)
        first, used = running.rows, running.rows + len(probes)
        rows = self.max_batch if self.pad else used
        inputs, times = self._inputs[:rows], self._times[:rows]
        conditionings = running.conditionings()
        if running.members:
            running.fill(inputs, times)
        if probes:
            inputs[first:used] = upload(np.stack([row.latent for _, row in probes]), self._device)
            times[first:used] = upload(np.array([row.timestep for _, row in probes], np.float32), self._device)
            conditionings = conditionings + [job.conditioning[row.prompt] for job, row in probes]
        if used < rows:
            inputs[used:], times[used:] = 0, 0
            conditionings = conditionings + conditionings[:1] * (rows - used)
        output, failed = self._predict(inputs, times, conditionings, probes)
        if output is None:
            return failed
        kept = output[first:used].clone() if probes else None
        moved = running.advance(output) if running.members else None
        arrived = running.arrive() if running.members else None
        watch.stop()
        newcomers, self._newcomers = self._newcomers, []

        def land() -> None:
            share = watch.seconds / used
            for member in newcomers:
                member.since = self._clock
            self._clock += share
            if moved is not None:
                self._check(moved)
            if arrived is not None:
                self._leave(arrived)
            for index, (job, _) in enumerate(probes):
                if not job.future.done():
                    self._charge(job, 1, share)
                    job.outputs.append(cast(Tensor, kept)[index])
                    task = job.task
                    if task is not None and len(job.outputs) == len(task.rows):
                        self._locate(job, lambda job=job, task=task: task.finish(job.outputs))  # type: ignore[misc]

        self._landings.then(land)
        return failed

    def _predict(
        self, inputs: Tensor, times: Tensor, conditionings: list[Any], probes: list[tuple[_Job, PredictionRow]]
    ) -> tuple[Tensor | None, list[_Job]]:
        """The network's output (None when no row came through) and the jobs that failed alone; theirs is zero."""
        members = self._running.members
        owners = [cast(_Job, member.owner) for member in members]
        owners += [cast(_Job, member.owner) for member in members if member.negative is not None]
        owners += [job for job, _ in probes]
        everyone = list({id(job): job for job in owners}.values())
        output: Tensor | None = None

        def predict(jobs: list[_Job]) -> None:
            nonlocal output
            if len(jobs) == len(everyone):
                output = (self._replay or self.backbone).predict(inputs, times, self._stack(conditionings))
                return
            # The others' rows become padding; these keep their places.
            wanted = set(map(id, jobs))
            mine = [row for row, owner in enumerate(owners) if id(owner) in wanted]
            texts = [conditionings[mine[0]]] * len(conditionings)
            some, then = torch.zeros_like(inputs), torch.zeros_like(times)
            some[mine], then[mine] = inputs[mine], times[mine]
            for row in mine:
                texts[row] = conditionings[row]
            found = self.backbone.predict(some, then, self.backbone.stack(texts))
            output = torch.zeros_like(found) if output is None else output
            output[mine] = found[mine]

        failed = self._isolate(everyone, predict, lambda job: [job])
        return output, failed

    def _charge(self, job: _Job, rows: int, seconds: float, nfe: float | None = None) -> None:
        """Charge network rows; rows of a localization cost their share of a guided or unguided step."""
        guided = not isinstance(job.work, Encode) and job.work.sampling.guided
        job.usage += Usage(
            nfe=rows / (2 if guided else 1) if nfe is None else nfe,
            rows=rows,
            flops=rows * self.backbone.info.flops_per_row,
            device_s=seconds,
        )

    def _stack(self, conditionings: list[Any]) -> Any:
        """The stacked conditionings, kept from the last call while they are the same."""
        last, stacked = self._stacked
        if len(last) != len(conditionings) or any(a is not b for a, b in zip(last, conditionings, strict=True)):
            stacked = self.backbone.stack(conditionings)
            self._stacked = conditionings, stacked
        return stacked

    def _admit(self) -> bool:
        """Let waiting work join while there is room; looks go first."""
        admitted = False
        while True:
            queue = self._quick or self._segments
            if not queue:
                return admitted
            work = cast(Segment | Predict, queue[0].work)
            # A long queue of segments must not keep localizations waiting: they get room before new segments.
            reserved = len(self._probes) if queue is self._segments else 0
            if self._running.rows + reserved + (2 if work.sampling.guided else 1) > self.max_batch:
                return admitted
            job = queue.popleft()
            job.started = time.time()
            admitted = True
            self._attempt([job], lambda job=job: self._join(job))  # type: ignore[misc]

    def _join(self, job: _Job) -> None:
        work = job.work
        if isinstance(work, Predict):
            if work.state.predicted is not None:
                self._show(job, work.state, work.state.predicted)
                return
            member = look(job, work)
        else:
            work = cast(Segment, work)
            state = start_state(self.backbone, work)
            if state.step == work.stop:
                self._reached(job, state)
                return
            member = Trajectory(job, work.sampling, state, work.stop, work.search_seed, work.lineage)
        member.conditioning = job.conditioning[work.sampling.prompt]
        member.negative = job.conditioning[work.sampling.negative] if work.sampling.guided else None
        self._running.add(member)
        self._newcomers.append(member)
        if not member.look and member.state.predicted is not None:
            moved = self._running.advance_last(member.state.predicted)
            arrived = self._running.arrive()

            def land() -> None:
                self._check(moved)
                if arrived is not None:
                    self._leave(arrived)

            self._landings.then(land)

    def _check(self, moved: Moved) -> None:
        """Fail the trajectories that broke in a step, all others go on."""
        for member, step in moved.broken():
            job = cast(_Job, member.owner)
            self._broken.append(job)
            at = f"step {step} of {member.state.steps} (prompt {member.sampling.prompt!r})"
            self._fail(job, Failure(f"the latent became NaN or infinite at {at}"))

    def _leave(self, arrived: Arrived) -> None:
        """Finish the trajectories that have arrived, unless they broke; an image is decoded first."""
        for index, (member, state) in enumerate(zip(arrived.members, arrived.states(), strict=True)):
            job, calls = cast(_Job, member.owner), int(arrived.calls[index])
            if calls:
                self._charge(job, calls * member.rows, (self._clock - member.since) * member.rows, nfe=float(calls))
            if job.future.done():
                continue
            if member.look or state.complete:
                self._images.append(_Undecoded(job, arrived.latents[index], state, self._ticks))
            else:
                self._finish(job, state)

    def _reached(self, job: _Job, state: State) -> None:
        if state.complete:
            self._show(job, state, state.latent)
        else:
            self._finish(job, state)

    def _show(self, job: _Job, state: State, latent: Floats) -> None:
        self._images.append(_Undecoded(job, upload(latent.copy(), self._device), state, self._ticks))


def check(backbone: Backbone, work: Generate) -> None:
    """Refuse work that cannot be carried out.

    Raises:
        BadInput: a step outside the schedule, a state of another schedule or of the wrong shape, a wrong image.
    """
    info = backbone.info
    if isinstance(work, Encode):
        if work.image.dtype != np.uint8 or work.image.shape != (*info.image, 3):
            size = "x".join(map(str, work.image.shape))
            raise BadInput(f"an image for {info.name} must be {info.image[0]}x{info.image[1]}x3 bytes, got {size}")
        return
    steps = work.sampling.steps
    if not work.sampling.prompt.strip():
        raise BadInput("the prompt is empty")
    if work.state is not None:
        if work.state.latent.shape != info.latent:
            raise BadInput(f"a latent of {info.name} has shape {info.latent}, got {work.state.latent.shape}")
        if not isinstance(work, Locate) and not work.state.complete and work.state.steps != steps:
            raise BadInput(f"the state is on a schedule of {work.state.steps} steps, not of {steps}")
    if isinstance(work, Predict) and work.state.complete:
        raise BadInput("the state is complete: there is nothing to predict")
    if isinstance(work, Segment):
        _check_segment(backbone, work)


def _check_segment(backbone: Backbone, work: Segment) -> None:
    steps = work.sampling.steps
    backbone.schedule(steps)
    if work.renoise is not None:
        if work.state is None or not work.state.complete:
            raise BadInput("only a complete candidate can be re-noised")
        if not 0 <= work.renoise < steps:
            raise BadInput(f"a refinement must start at a step within 0..{steps - 1}, got {work.renoise}")
        if work.region is not None and work.region.mask.shape != backbone.info.latent[1:]:
            raise BadInput(f"a mask must be {backbone.info.latent[1:]} on the latent, got {work.region.mask.shape}")
    if not work.start <= work.stop <= steps:
        raise BadInput(f"a segment from step {work.start} must stop within {work.start}..{steps}, got {work.stop}")
