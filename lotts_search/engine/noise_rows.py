"""Noise for many rows at once, drawn while the device works."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import torch
from torch import Tensor

from lotts_search.engine.transfer import host_buffer, send
from lotts_search.work.noise import Purpose, draw
from lotts_search.work.requests import Floats, Lineage

NoiseKey: TypeAlias = tuple[int, Lineage, Purpose, int]
"""Search seed, lineage, purpose and step: arguments of :func:`~lotts_search.work.noise.draw`."""

THREADS = 4
"""Most threads that draw noise for a device."""


class NoiseRows:
    """Draws noise of one shape for one device.

    Args:
        threads: background threads, which spend most of their time in numpy without Python's lock; 0 = draw in
            :meth:`finish`; None = by device: 0 on a CPU, whose cores compute the model.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, threads: int | None = None):
        self._shape, self._device = shape, device
        self._wanted: list[NoiseKey | None] = []
        self._buffer = torch.empty(0)
        self._parts: list[Future[None]] = []
        self._threads: ThreadPoolExecutor | None = None
        if threads is None:
            threads = max(1, min(THREADS, len(os.sched_getaffinity(0)) - 1)) if device.type == "cuda" else 0
        self._count = threads
        if threads:
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="lotts-search noise")

    def begin(self, wanted: list[NoiseKey | None]) -> None:
        """Start to draw one row per key, zeros for None; rows begun before and not fetched are dropped."""
        self._wanted, self._parts = wanted, []
        if self._threads is None:
            if len(self._buffer) < len(wanted):
                self._buffer = torch.empty(len(wanted), *self._shape)
            return
        # A new buffer each time: the last one may still be on its way to the device.
        self._buffer = host_buffer((len(wanted), *self._shape), self._device)
        rows = self._buffer.numpy()
        for first in range(self._count):
            part = slice(first, None, self._count)
            self._parts.append(self._threads.submit(_fill, list(rows)[part], wanted[part]))

    def finish(self) -> Tensor:
        """Return the noise [len(wanted), *shape] on the device; valid until the next :meth:`begin`."""
        if self._threads is None:
            noise = self._buffer[: len(self._wanted)]
            _fill(list(noise.numpy()), self._wanted)
            return noise.to(self._device)
        for part in self._parts:
            part.result()
        return send(self._buffer, self._device)


def _fill(rows: list[Floats], wanted: list[NoiseKey | None]) -> None:
    for row, one in zip(rows, wanted, strict=True):
        if one is None:
            row[...] = 0
        else:
            draw(*one, row.shape, out=row)
