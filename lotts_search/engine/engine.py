"""Continuous batching: everything a generator does, in batched operations of one model.

The engine passes each piece of work through the stages that it needs. A tick does one operation of the first stage
that has work. A network call stacks all running trajectories, of different prompts, steps, masks and searches, with
per-row timesteps; new work joins at the next tick, and finished work leaves at once.

With ``pad=True`` and one size of a batch every operation has a fixed size, so a row's bits do not depend on the rest of its
batch.

On a CUDA device the host runs ahead: what it must know of a tick's outcome (a latent that broke, the numbers of a
trajectory that arrived) is copied while the next ticks already run, and is read once the copy has landed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch

from lotts_search.backbones.base import Backbone, device_of
from lotts_search.engine.attention_stage import AttentionStage
from lotts_search.engine.checks import check, report
from lotts_search.engine.image_stage import DecodeStage, EncodeStage, default_batch
from lotts_search.engine.jobs import Job, Jobs
from lotts_search.engine.network_stage import NetworkStage
from lotts_search.engine.prompt_stage import PromptStage
from lotts_search.engine.stage import Shared, Stage
from lotts_search.engine.transfer import Landings
from lotts_search.errors import BadInput, LottsError
from lotts_search.localization.plan import AttentionPlan, CallPlan, FusionPlan, plan_of, prompts_of
from lotts_search.work.batch_sizes import ROWS, Batch, BatchSizes
from lotts_search.work.cancelling import when_cancelled
from lotts_search.work.requests import Check, Encode, Generate, Locate, Located, Predict, Result, Usage

AHEAD = {"cuda": 2}
"""Ticks that the host may be ahead of the device."""


class Engine:
    """Runs :data:`~lotts_search.work.requests.Generate` work on one backbone.

    ``submit`` may be called from any thread, ``tick`` from one thread only.

    Args:
        backbone: the model.
        batch: network rows of a call, or several sizes of which each call has the smallest that holds its rows. Guided
            sampling needs at least 2.
        pad: fill every call up to such a size (and decode, encode and text calls up to their own, where these are smaller).
        decode_batch: images in one decoder or encoder call, None = 1 for large images, by device for small ones.
        capture_rows: network rows in one padded attention call, None = by device; 0 = as many as a localization has.
        graphs: record the network call as a CUDA graph (see :mod:`lotts_search.engine.cuda_graphs`); only with ``pad``,
            one size and on a CUDA device.
        ahead: ticks that the host may run ahead of the device before it looks at their outcome, None = by device.
        prompts: how many encoded prompts are cached.
        frozen_bytes: most memory for keys and values of what refinements with ``refresh`` leave as it is; those that do not fit
            wait, except for one.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch: Batch = ROWS,
        pad: bool = True,
        *,
        decode_batch: int | None = None,
        capture_rows: int | None = None,
        graphs: bool = False,
        ahead: int | None = None,
        prompts: int = 256,
        frozen_bytes: int = 4 << 30,
    ):
        self.backbone = backbone
        device = device_of(backbone)
        self._landings = Landings(device, AHEAD.get(device.type, 0) if ahead is None else ahead)
        self._jobs = Jobs(backbone.info, self._landings)
        self._inbox: deque[Job[Any]] = deque()
        self._cancelled: deque[Job[Any]] = deque()
        self._shared = Shared(backbone, device, BatchSizes.of(batch), pad, self._landings, self._jobs)
        images = decode_batch or default_batch(self._shared)
        self._prompts = PromptStage(self._shared, prompts)
        self._decode = DecodeStage(self._shared, images, lambda: self._network.crowded)
        self._encode = EncodeStage(self._shared, images)
        self._attention = AttentionStage(self._shared, capture_rows)
        self._network = NetworkStage(self._shared, graphs, self._decode.add, frozen_bytes)
        self._stages: tuple[Stage, ...] = (
            self._prompts,
            self._decode,
            self._encode,
            self._attention,
            self._network,
        )

    def submit(self, work: Generate) -> Future[Result]:
        """Request a piece of work; never blocks. The future fails with a :class:`~lotts_search.errors.LottsError`. Cancelling
        it, at any time, stops the work at the next tick."""
        job = self._jobs.open(work)
        when_cancelled(job.future, job, self._cancelled.append)
        self._inbox.append(job)
        return job.future

    @property
    def outstanding_nfe(self) -> float:
        """NFE of all work that is requested and not yet done."""
        running = self._network.running_nfe()
        return sum(max(0.0, job.cost - job.usage.nfe - running.get(id(job), 0)) for job in self._jobs)

    @torch.inference_mode()
    def tick(self) -> bool:
        """Do one operation: a network call or another batched call. False when there is nothing to do."""
        self._shared.ticks += 1
        self._discard_cancelled()
        routed = self._route_inbox()
        landed = self._landings.settle()
        # The host waits for the device only when there is nothing else to do.
        return any(stage.tick() for stage in self._stages) or self._landings.settle(0) or landed or routed

    def abort(self, error: LottsError) -> None:
        """Fail all work, e.g. when the engine is closed. Only when no tick is under way."""
        for job in self._jobs:
            self._jobs.fail(job, error)
        self._inbox.clear()
        self._landings.clear()
        for stage in self._stages:
            stage.clear()

    def _route_inbox(self) -> bool:
        routed = bool(self._inbox)
        while self._inbox:
            job = self._inbox.popleft()
            if not job.future.cancelled():
                self._jobs.attempt([job], partial(self._route, job))
        return routed

    def _discard_cancelled(self) -> None:
        gone = [self._cancelled.popleft() for _ in range(len(self._cancelled))]
        for job in gone:
            self._jobs.drop(job)
        if gone:
            for stage in self._stages:
                stage.discard(set(map(id, gone)))

    def _route(self, job: Job[Any]) -> None:
        """Pass a job to its first stage, and say which one comes after its prompts."""
        work: Generate = job.work
        check(self.backbone, work)
        if isinstance(work, Encode):
            self._encode.add(job)
            return
        if isinstance(work, Check):
            note, job.usage = report(self.backbone, work)
            self._jobs.finish(job, note=note)
            return
        if isinstance(work, Locate):
            self._route_localization(job)
            return
        prompts = [work.sampling.prompt]
        if work.sampling.guided:
            if self._shared.max_batch < 2:
                raise BadInput("batch must be 2 or more for guided sampling")
            prompts.append(work.sampling.negative)
        add = self._network.add_preview if isinstance(work, Predict) else self._network.add
        self._prompts.add(job, prompts, partial(add, job))

    def _route_localization(self, job: Job[Locate]) -> None:
        plan = plan_of(self.backbone, job.work)
        if isinstance(plan, Located):
            job.started = time.time()
            self._jobs.finish_located(job, plan)
        elif isinstance(plan, CallPlan):
            job.started = time.time()
            finish = partial(self._jobs.attempt, [job], partial(self._call, job, plan))
            threading.Thread(target=finish, name="lotts-search localization", daemon=True).start()
        elif isinstance(plan, FusionPlan):
            self._divide(job, plan)
        elif isinstance(plan, AttentionPlan):
            self._prompts.add(job, prompts_of(plan), partial(self._attention.add, job, plan))
        else:
            self._prompts.add(job, prompts_of(plan), partial(self._network.add_localization, job, plan))

    def _call(self, job: Job[Locate], plan: CallPlan) -> None:
        located = plan.call()
        job.usage += getattr(plan, "usage", Usage())
        self._jobs.finish_located(job, located)

    def _divide(self, job: Job[Locate], plan: FusionPlan) -> None:
        """Run the parts of a localization as work of their own; the last answer finishes it, at their total cost."""
        job.started, job.cost = time.time(), 0.0
        parts = [self.submit(part) for part in plan.parts]

        def fuse() -> None:
            results = [part.result() for part in parts]
            for result in results:
                job.usage += result.usage
            found = [result.located for result in results if result.located is not None]
            self._jobs.finish_located(job, plan.finish(found))

        def arrived(part: Future[Result]) -> None:
            if all(part.done() for part in parts):
                self._jobs.attempt([job], fuse)

        for part in parts:
            part.add_done_callback(arrived)
            job.future.add_done_callback(lambda _, part=part: part.cancel())  # type: ignore[misc]
