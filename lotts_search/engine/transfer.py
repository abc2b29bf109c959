"""Transfers between host and device without waiting for the device; on a CPU they complete at once.

CUDA copies are asynchronous only to and from pinned memory, and pinned memory must not change while a copy runs. So each
upload takes a new block from torch's allocator, which reuses a block only after the copies from it have completed, and
a download is read only after its event has passed.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def host_buffer(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uninitialised host memory for an upload: write it once, then :func:`send` it."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def send(buffer: Tensor, device: torch.device) -> Tensor:
    """Copy a :func:`host_buffer` to the device; it must not be written afterwards."""
    return buffer.to(device, non_blocking=True)


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device. On a CPU the tensor shares the array's memory, so the caller must not keep it."""
    host = torch.from_numpy(array)
    return send(host.pin_memory(), device) if device.type == "cuda" else host.to(device)


class Download:
    """Tensors that are being copied to the host. Call :meth:`arrays` only once the device has completed the work
    queued up to here, which :class:`Landings` waits for."""

    def __init__(self, *tensors: Tensor):
        self._host = [_fetch(tensor) for tensor in tensors]

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Return one array per tensor."""
        return [tensor.numpy() for tensor in self._host]


def _fetch(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class Watch:
    """Measures the seconds that the device takes between the construction and :meth:`stop`."""

    def __init__(self, device: torch.device):
        self._device = device
        self._began: Any = self._mark()
        self._ended: Any = None

    def _mark(self) -> Any:
        return _event(self._device, timed=True) if self._device.type == "cuda" else time.perf_counter()

    def stop(self) -> None:
        self._ended = self._mark()

    @property
    def seconds(self) -> float:
        """The measured time; available once the device has completed the work in between."""
        if self._device.type == "cuda":
            return float(self._began.elapsed_time(self._ended)) / 1000
        return float(self._ended - self._began)


def _event(device: torch.device, timed: bool = False) -> Any:
    """Return an event that passes when the device has completed everything queued so far."""
    event: Any = torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


class Landings:
    """Actions that wait for the device to complete the work queued before them; done in order.

    Args:
        device: where the work runs.
        ahead: how many actions may be pending before the host waits for the first; 0 waits at once.
    """

    def __init__(self, device: torch.device, ahead: int):
        self._device, self._ahead = device, ahead
        self._waiting: deque[tuple[Any, Callable[[], None]]] = deque()
        self._side: Any = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def then(self, action: Callable[[], None]) -> None:
        """Do ``action`` once the device has completed everything queued so far."""
        self._waiting.append((None if self._side is None else _event(self._device), action))
        self.settle(self._ahead)

    def settle(self, allowed: int | None = None) -> bool:
        """Do the actions that are due, and wait until at most ``allowed`` (None = ``ahead``) are pending.

        Returns:
            Whether any action was done.
        """
        allowed = self._ahead if allowed is None else allowed
        done = False
        while self._waiting:
            event, action = self._waiting[0]
            if len(self._waiting) <= allowed and not (event is not None and event.query()):
                break
            if event is not None:
                event.synchronize()
            self._waiting.popleft()
            action()
            done = True
        return done

    def beside(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context for an action that computes and waits for its own result. Inside, it does not wait for work
        queued since. Its inputs must have landed, and its tensors must not outlive the wait."""
        return contextlib.nullcontext() if self._side is None else torch.cuda.stream(self._side)

    def clear(self) -> None:
        """Forget all actions."""
        self._waiting.clear()
