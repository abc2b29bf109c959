"""Continuous batching: everything a generator does, in batched operations of one model.

Each tick does one operation. A network call stacks all running trajectories, of different prompts, steps, masks and
searches, with per-row timesteps; a guided trajectory gives two rows; rows left over go to localizations. New work
joins at the next tick, finished work leaves at once. Attention is read in calls of its own. Prompts (cached), decoding
and encoding are further operations.

With ``pad=True`` every operation has a fixed size, so a row's bits do not depend on what else is in its batch.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lotts_search.backbones.base import Backbone, device_of, tell
from lotts_search.errors import BadInput, Failure, LottsError
from lotts_search.localization.attention import RowAttention
from lotts_search.localization.error_contrast import PredictionRow
from lotts_search.localization.fusion import FusionLocalization
from lotts_search.localization.locate import PredictionLocalization, attend_rows, begin, prompts_of
from lotts_search.localization.maskgen import AttentionLocalization
from lotts_search.localization.select import in_tokens
from lotts_search.trajectories import Trajectories, Trajectory, look, start_state
from lotts_search.work import Bytes, Encode, Floats, Generate, Locate, Located, Predict, Result, Segment, State, Usage

TEXT_BATCH = 4
"""Prompts in one text-encoder call when padded."""
SMALL_PICTURE = 256 * 256
"""Pictures of up to this many pixels are decoded four at a time, larger ones singly: a batch saves nothing there."""


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
class _Picture:
    """A latent [C, H, W] to decode for a job, and the state that goes with the picture."""

    job: _Job
    latent: Tensor
    state: State


class Engine:
    """Runs :data:`~lotts_search.work.Generate` work on one backbone.

    ``submit`` may be called from any thread, ``tick`` from one thread only.

    Args:
        backbone: the model.
        max_batch: most network rows in one call; guided sampling needs at least 2.
        pad: give every call exactly ``max_batch`` rows (and decode, encode and text calls their own fixed sizes).
        decode_batch: pictures in one decoder or encoder call, None = 4 for small pictures, 1 for large ones.
        prompts: how many encoded prompts are kept.
    """

    def __init__(
        self,
        backbone: Backbone,
        max_batch: int = 16,
        pad: bool = True,
        *,
        decode_batch: int | None = None,
        prompts: int = 256,
    ):
        if max_batch < 1:
            raise BadInput(f"max_batch must be 1 or more, got {max_batch}")
        self.backbone, self.max_batch, self.pad = backbone, max_batch, pad
        pixels = backbone.info.image[0] * backbone.info.image[1]
        self._decode_batch = decode_batch or min(max_batch, 4 if pixels <= SMALL_PICTURE else 1)
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._keep_prompts = max(prompts, TEXT_BATCH)
        self._running = Trajectories(backbone, max_batch)
        self._inputs = torch.zeros(max_batch, *backbone.info.latent, device=device_of(backbone))
        self._times = torch.zeros(max_batch, device=device_of(backbone))
        self._stacked: tuple[list[Any], Any] = ([], None)

        self._jobs: dict[Future[Result], _Job] = {}
        self._inbox: deque[_Job] = deque()
        self._unread: list[_Job] = []  # prompts not encoded yet
        self._quick: deque[_Job] = deque()  # looks: they go before segments, whose successors wait for them
        self._segments: deque[_Job] = deque()
        self._probes: deque[tuple[_Job, PredictionRow]] = deque()
        self._captures: deque[_Job] = deque()
        self._pictures: deque[_Picture] = deque()
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
        return sum(max(0.0, job.cost - job.usage.nfe) for job in list(self._jobs.values()))

    @torch.inference_mode()
    def tick(self) -> bool:
        """Do one operation: a network call or another batched call. False when there is nothing to do."""
        took = self._take_in()
        operations = (self._encode_prompts, self._decode, self._encode_pictures, self._capture, self._network)
        return any(operation() for operation in operations) or took

    def abort(self, error: LottsError) -> None:
        """Fail all work, e.g. when the engine is closed. Only when no tick is under way."""
        for job in list(self._jobs.values()):
            self._fail(job, error)
        for queue in (self._inbox, self._quick, self._segments, self._captures, self._encodes):
            queue.clear()
        self._probes.clear()
        self._pictures.clear()
        self._unread.clear()
        while self._running.members:
            self._running.remove(0)

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

    def _attempt(self, jobs: list[_Job], action: Callable[[], None]) -> bool:
        """Do something for these jobs; if it raises, they fail and nothing else does."""
        try:
            action()
            return True
        except Exception as error:
            known = error
            if not isinstance(error, LottsError):
                known = Failure(f"model {self.backbone.info.name} failed: {type(error).__name__}: {error}")
                known.__cause__ = error
            for job in jobs:
                self._fail(job, cast(LottsError, known))
            return False

    # The operations of a tick; each answers whether it did something.

    def _encode_prompts(self) -> bool:
        wanted = dict.fromkeys(
            prompt for job in self._unread for prompt, value in job.conditioning.items() if value is None
        )
        if not wanted:
            return False
        prompts = list(wanted)[:TEXT_BATCH]

        def encode() -> None:
            padding = [""] * (TEXT_BATCH - len(prompts) if self.pad else 0)
            encoded = self.backbone.encode_prompts(prompts + padding)
            self._known.update(zip(prompts, encoded, strict=False))

        jobs = [job for job in self._unread if not job.conditioning.keys().isdisjoint(prompts)]
        if not self._attempt(jobs, encode):
            self._unread = [job for job in self._unread if job not in jobs]
        self._sort()
        while len(self._known) > self._keep_prompts:
            self._known.popitem(last=False)
        return True

    def _decode(self) -> bool:
        if not self._pictures:
            return False
        count = min(len(self._pictures), self._decode_batch if self.pad else self.max_batch)
        batch = [self._pictures.popleft() for _ in range(count)]

        def decode() -> None:
            began = time.perf_counter()
            latents = [picture.latent for picture in batch]
            latents += [latents[-1]] * (self._decode_batch - count if self.pad else 0)
            images = self.backbone.decode(torch.stack(latents))
            share = (time.perf_counter() - began) / count
            for picture, image in zip(batch, images, strict=False):
                picture.job.usage.decodes += 1
                picture.job.usage.images += int(picture.state.complete)
                picture.job.usage.device_s += share
                self._finish(picture.job, picture.state, image.copy())

        self._attempt([picture.job for picture in batch], decode)
        return True

    def _encode_pictures(self) -> bool:
        if not self._encodes:
            return False
        count = min(len(self._encodes), self._decode_batch if self.pad else self.max_batch)
        jobs = [self._encodes.popleft() for _ in range(count)]

        def encode() -> None:
            began, now = time.perf_counter(), time.time()
            works = [cast(Encode, job.work) for job in jobs]
            images = [work.image for work in works]
            images += [images[-1]] * (self._decode_batch - count if self.pad else 0)
            latents = self.backbone.encode(np.stack(images)).cpu().numpy()
            share = (time.perf_counter() - began) / count
            for job, work, latent in zip(jobs, works, latents, strict=False):
                job.started, job.usage.device_s = now, share
                # The picture itself, not its round trip: it is what a refinement must beat.
                self._finish(job, State(latent.copy(), work.steps, work.steps), work.image)

        self._attempt(jobs, encode)
        return True

    def _capture(self) -> bool:
        if not self._captures:
            return False
        jobs = [self._captures.popleft()]
        first = cast(AttentionLocalization, jobs[0].task)
        rows = list(first.rows)
        # Padded, a localization keeps to itself: its number of rows is its own, so it wastes none.
        while not self.pad and self._captures:
            task = cast(AttentionLocalization, self._captures[0].task)
            if not task.goes_with(first) or len(rows) + len(task.rows) > self.max_batch:
                break
            rows += task.rows
            jobs.append(self._captures.popleft())

        def capture() -> None:
            began, now = time.perf_counter(), time.time()
            owners = [job for job in jobs for _ in cast(AttentionLocalization, job.task).rows]
            seen: list[RowAttention] = []
            for start in range(0, len(rows), self.max_batch):
                part = rows[start : start + self.max_batch]
                known = [job.conditioning for job in owners[start : start + self.max_batch]]
                seen += attend_rows(self.backbone, part, first, known)
            for job in jobs:
                job.started = now
                task = cast(AttentionLocalization, job.task)
                answer = task.finish(seen[: len(task.rows)])
                del seen[: len(task.rows)]
                self._charge(job, len(task.rows), (time.perf_counter() - began) * len(task.rows) / len(rows))
                self._finish(job, located=answer)

        self._attempt(jobs, capture)
        return True

    def _network(self) -> bool:
        admitted = self._admit()
        running = self._running
        spare = self.max_batch - running.rows
        probes = [self._probes.popleft() for _ in range(min(spare, len(self._probes)))]
        used = running.rows + len(probes)
        if not used:
            return admitted
        rows = self.max_batch if self.pad else used
        now = time.time()
        for job, _ in probes:
            job.started = job.started or now

        def call() -> None:
            began = time.perf_counter()
            inputs, times = self._inputs[:rows], self._times[:rows]
            if running.members:
                running.fill(inputs, times)
            conditionings = running.conditionings()
            for place, (job, row) in enumerate(probes, running.rows):
                inputs[place] = torch.from_numpy(row.latent)
                times[place] = row.timestep
                conditionings.append(job.conditioning[row.prompt])
            inputs[used:], times[used:] = 0, 0
            conditionings += [conditionings[0]] * (rows - used)
            output = self.backbone.predict(inputs, times, self._stack(conditionings))
            if probes:
                kept = output[running.rows : used].clone()
            sound = running.advance(output) if running.members else []
            share = (time.perf_counter() - began) / used
            for index, (job, _) in enumerate(probes):
                job.outputs.append(kept[index])
                self._charge(job, 1, share)
            for member in running.members:
                self._charge(member.owner, 1 if member.negative is None else 2, share, nfe=1.0)
            self._leave(0, sound)

        everyone = [member.owner for member in running.members] + [job for job, _ in probes]
        if not self._attempt(everyone, call):
            while running.members:
                running.remove(0)
            broken = {id(job) for job, _ in probes}
            self._probes = deque(probe for probe in self._probes if id(probe[0]) not in broken)
        for job in dict.fromkeys(job for job, _ in probes):
            task = job.task
            if task is not None and len(job.outputs) == len(task.rows):
                self._attempt([job], lambda job=job, task=task: self._finish(job, located=task.finish(job.outputs)))  # type: ignore[misc]
        return True

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
        if not member.look and member.state.predicted is not None:
            sound = self._running.advance_last(member.state.predicted)
            self._leave(len(self._running.members) - 1, [sound])

    def _leave(self, first: int, sound: list[bool]) -> None:
        """Take out, from the slot ``first`` on, the trajectories that broke or have arrived."""
        running = self._running
        for slot in reversed(range(first, first + len(sound))):
            member = running.members[slot]
            job = cast(_Job, member.owner)
            if not sound[slot - first]:
                at = member.step if member.look else member.step - 1
                self._fail(
                    job,
                    Failure(
                        f"the latent became NaN or infinite at step {at} of {member.state.steps}"
                        f" (prompt {member.sampling.prompt!r})"
                    ),
                )
            elif member.look:
                predicted = running.prediction(slot)
                self._show(job, replace(member.state, predicted=predicted), predicted)
            elif member.step == member.stop:
                self._reached(job, running.state(slot))
            else:
                continue
            running.remove(slot)

    def _reached(self, job: _Job, state: State) -> None:
        if state.complete:
            self._show(job, state, state.latent)
        else:
            self._finish(job, state)

    def _show(self, job: _Job, state: State, latent: Floats) -> None:
        device = device_of(self.backbone)
        self._pictures.append(_Picture(job, torch.tensor(latent, device=device), state))


def check(backbone: Backbone, work: Generate) -> None:
    """Refuse work that cannot be carried out.

    Raises:
        BadInput: a step outside the schedule, a state of another schedule or of the wrong shape, a wrong picture.
    """
    info = backbone.info
    if isinstance(work, Encode):
        if work.image.dtype != np.uint8 or work.image.shape != (*info.image, 3):
            size = "x".join(map(str, work.image.shape))
            raise BadInput(f"a picture for {info.name} must be {info.image[0]}x{info.image[1]}x3 bytes, got {size}")
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
