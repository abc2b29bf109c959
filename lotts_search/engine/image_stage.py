"""Images: latents are decoded and images encoded, in batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lotts_search.backbones.base import DecodesOnDevice, Previews, broken_image
from lotts_search.engine.jobs import Job
from lotts_search.engine.stage import Shared, Stage
from lotts_search.engine.transfer import Download, Watch
from lotts_search.work.fitting import Fitting
from lotts_search.work.requests import Encode, Generate, State, Usage

SMALL_IMAGE = 256 * 256
"""Images of up to this many pixels are decoded several at a time, larger ones singly: a batch saves nothing there."""
DECODE_BATCH = {"cpu": 4, "cuda": 16}
"""Small images in one call, by device."""
PATIENCE = 4
"""Ticks that an image waits for others to be decoded with, while segments are queued."""

Images = Callable[[], tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]
"""Returns images [B, h, w, 3] once they have landed, and for each [B] whether its decoder's values were finite."""


def default_batch(shared: Shared) -> int:
    """Return how many images one decoder or encoder call takes by default."""
    height, width = shared.backbone.info.image
    small = DECODE_BATCH.get(shared.device.type, DECODE_BATCH["cpu"])
    return min(shared.max_batch, small if height * width <= SMALL_IMAGE else 1)


@dataclass(eq=False)
class _Undecoded:
    """A latent [C, H, W] to decode for a job.

    Attributes:
        state: what the job's answer holds beside the image.
        tick: when it was queued.
    """

    job: Job[Generate]
    latent: Tensor
    state: State
    tick: int


class DecodeStage(Stage):
    """Decodes complete latents and x0 predictions, which finishes their jobs.

    Args:
        batch: most images in one padded call.
        crowded: whether segments are queued for the network.
    """

    def __init__(self, shared: Shared, batch: int, crowded: Callable[[], bool]):
        super().__init__(shared)
        self._sizes, self._crowded = shared.sizes.up_to(batch), crowded
        self._fitting = Fitting(f"the decoder of {self.backbone.info.name}")
        self._queue: deque[_Undecoded] = deque()

    def add(self, job: Job[Generate], latent: Tensor, state: State) -> None:
        """Decode a latent [C, H, W] on the device and answer the job with ``state`` and the image."""
        self._queue.append(_Undecoded(job, latent, state, self.shared.ticks))

    def tick(self) -> bool:
        queue = self._queue
        count = min(len(queue), self._sizes.most if self.shared.pad else self.shared.max_batch)
        if not count:
            return False
        if count < self._sizes.most and self._crowded() and self.shared.ticks - queue[0].tick < PATIENCE:
            return False
        batch = [queue.popleft()]
        while len(batch) < count and queue[0].state.complete == batch[0].state.complete:
            batch.append(queue.popleft())
        self.jobs.isolate(batch, self._decode, lambda item: [item.job])
        return True

    def discard(self, gone: set[int]) -> None:
        self._queue = deque(item for item in self._queue if id(item.job) not in gone)

    def clear(self) -> None:
        self._queue.clear()

    def _decode(self, batch: list[_Undecoded]) -> None:
        watch = Watch(self.device)
        latents = [item.latent for item in batch]
        latents += [latents[-1]] * (self.shared.filled(len(batch), self._sizes) - len(batch))
        stacked, preview = torch.stack(latents), not batch[0].state.complete
        parts = self._fitting.run(len(stacked), lambda rows: self._images(stacked[rows], preview))
        watch.stop()
        self.shared.landings.then(partial(self._finish, batch, parts, watch))

    def _images(self, latents: Tensor, preview: bool) -> Images:
        backbone = self.backbone
        if self.device.type == "cuda" and isinstance(backbone, DecodesOnDevice):
            download = Download(*backbone.decode_tensor(latents, preview))
            return lambda: (download.arrays()[0], download.arrays()[1])
        decode = backbone.preview if preview and isinstance(backbone, Previews) else backbone.decode
        images = decode(latents)
        return lambda: (images, np.ones(len(images), np.bool_))

    def _finish(self, batch: list[_Undecoded], parts: list[Images], watch: Watch) -> None:
        prices = self.backbone.info.prices
        decoded = (pair for images in parts for pair in zip(*images(), strict=True))
        for item, (image, finite) in zip(batch, decoded, strict=False):
            if not finite:
                self.jobs.fail(item.job, broken_image())
                continue
            complete = item.state.complete
            item.job.usage += Usage(
                images=int(complete),
                decodes=1,
                previews=int(not complete),
                flops=prices.decode if complete else prices.preview,
                device_s=watch.seconds / len(batch),
            )
            self.jobs.finish(item.job, item.state, image.copy())


class EncodeStage(Stage):
    """Encodes images to complete states.

    Args:
        batch: most images in one padded call.
    """

    def __init__(self, shared: Shared, batch: int):
        super().__init__(shared)
        self._sizes = shared.sizes.up_to(batch)
        self._fitting = Fitting(f"the encoder of {self.backbone.info.name}")
        self._queue: deque[Job[Encode]] = deque()

    def add(self, job: Job[Encode]) -> None:
        self._queue.append(job)

    def tick(self) -> bool:
        count = min(len(self._queue), self._sizes.most if self.shared.pad else self.shared.max_batch)
        if not count:
            return False
        self.jobs.isolate([self._queue.popleft() for _ in range(count)], self._encode, lambda job: [job])
        return True

    def discard(self, gone: set[int]) -> None:
        self._queue = deque(job for job in self._queue if id(job) not in gone)

    def clear(self) -> None:
        self._queue.clear()

    def _encode(self, jobs: list[Job[Encode]]) -> None:
        began, now = time.perf_counter(), time.time()
        images = [job.work.image for job in jobs]
        images += [images[-1]] * (self.shared.filled(len(jobs), self._sizes) - len(jobs))
        parts = self._fitting.run(len(images), lambda rows: self.backbone.encode(np.stack(images[rows])).cpu().numpy())
        latents = np.concatenate(parts)
        share = (time.perf_counter() - began) / len(jobs)
        for job, latent in zip(jobs, latents, strict=False):
            if not np.isfinite(latent).all():
                self.jobs.fail(job, broken_image("encoder"))
                continue
            job.started = now
            job.usage += Usage(encodes=1, flops=self.backbone.info.prices.encode, device_s=share)
            # The image itself, not its round trip: a refinement must beat the original.
            self.jobs.finish(job, State(latent.copy(), job.work.steps, job.work.steps), job.work.image)
