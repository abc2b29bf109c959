"""Network calls that are recorded once and replayed: CUDA graphs.

A small network takes the host longer to launch, kernel by kernel, than the device to compute; a graph is launched at
once. Calls must be of one shape, as those of an engine that pads are. A call that cannot be recorded is simply made.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lotts_search.backbones.base import Backbone

LIMIT = 2e12
"""Floating-point operations of a call up to which it is recorded: tens of milliseconds on a large device. Beyond it
launches hardly count, and a recording would hold the memory of a whole call."""
WARM_UP = 3
"""Calls before the recording, in which libraries choose their kernels and allocate their workspaces."""

log = logging.getLogger(__name__)


class RecordedNetwork:
    """``backbone.predict`` by CUDA graphs. An output is valid until the next call."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self._recordings: dict[Any, _Recording | None] = {}

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """As :meth:`Backbone.predict`, for tensors on a CUDA device."""
        parts = list(_tensors(conditioning))
        key = tuple(None if part is None else (part.shape, part.dtype) for part in parts), latents.shape
        if key not in self._recordings:
            self._recordings[key] = self._record(latents, timesteps, conditioning, parts)
        recording = self._recordings[key]
        if recording is None:
            return self._backbone.predict(latents, timesteps, conditioning)
        return recording.play(latents, timesteps, conditioning)

    def _record(
        self, latents: Tensor, timesteps: Tensor, conditioning: Any, parts: list[Tensor | None]
    ) -> _Recording | None:
        if any(part is None for part in parts) or len(latents) * self._backbone.info.flops_per_row > LIMIT:
            return None
        try:
            return _Recording(self._backbone, latents, timesteps, conditioning)
        except Exception as error:
            torch.cuda.synchronize(latents.device)  # raises when the device itself is lost
            log.warning("calls of %s are not recorded: %s", self._backbone.info.name, error)
            return None


class _Recording:
    """One graph with the memory that it reads and writes."""

    def __init__(self, backbone: Backbone, latents: Tensor, timesteps: Tensor, conditioning: Any):
        self._latents, self._timesteps = latents.clone(), timesteps.clone()
        self._conditioning, self._copied = _clone(conditioning), conditioning
        arguments = self._latents, self._timesteps, self._conditioning
        main: Any = torch.cuda.current_stream(latents.device)
        side: Any = torch.cuda.Stream(latents.device)  # type: ignore[no-untyped-call]
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                backbone.predict(*arguments)
        main.wait_stream(side)
        self._graph: Any = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = backbone.predict(*arguments)
        finally:
            torch.cuda.set_stream(main)  # a recording that fails may leave its own behind

    def play(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        self._latents.copy_(latents)
        self._timesteps.copy_(timesteps)
        if conditioning is not self._copied:
            for own, new in zip(_tensors(self._conditioning), _tensors(conditioning), strict=True):
                if own is not None and new is not None:
                    own.copy_(new)
            self._copied = conditioning
        self._graph.replay()
        return self._output


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _tensors(value: Any) -> Iterator[Tensor | None]:
    """The tensors in a conditioning, None for anything else in it that is something."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(value):
        yield from _tensors(_fields(value))
    elif value is not None:
        yield value if isinstance(value, Tensor) else None


def _clone(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _clone(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([_clone(part) for part in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **_clone(_fields(value)))
    return value.clone() if isinstance(value, Tensor) else value
