"""Network calls recorded once and replayed: CUDA graphs.

The host takes longer to launch a small network, kernel by kernel, than the device takes to compute it; a graph is
launched at once. All calls must have one shape, as those of an engine that pads have. A call that cannot be recorded is
made as usual.
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
"""Most floating-point operations of a call that is recorded: tens of milliseconds on a large device. Launching larger
calls costs little in comparison, and a recording holds the memory of a whole call."""
WARM_UP = 3
"""Calls before the recording, in which libraries choose kernels and allocate workspaces."""

log = logging.getLogger(__name__)


class RecordedNetwork:
    """Replays ``backbone.predict`` from CUDA graphs. An output is valid until the next call."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self._recordings: dict[Any, _Recording | None] = {}

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Call the network once: :meth:`Backbone.predict` for tensors on a CUDA device."""
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
        if any(part is None for part in parts) or len(latents) * self._backbone.info.prices.row > LIMIT:
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
            # Other threads may use the device during the recording.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = backbone.predict(*arguments)
        finally:
            torch.cuda.set_stream(main)  # a failed recording may leave its stream as the current one

    def play(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        self._latents.copy_(latents)
        self._timesteps.copy_(timesteps)
        if conditioning is not self._copied:
            for kept, new in zip(_tensors(self._conditioning), _tensors(conditioning), strict=True):
                if kept is not None and new is not None:
                    kept.copy_(new)
            self._copied = conditioning
        self._graph.replay()
        return self._output


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _tensors(value: Any) -> Iterator[Tensor | None]:
    """Yield the tensors in a conditioning, and None in the place of any other value that is not None."""
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
