"""Callbacks of diffusers' pipelines, called with what happens in searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lotts_search.core.events import Event, TrialFinished
from lotts_search.errors import BadInput, unknown

Callback: TypeAlias = Callable[[Any, int, float, dict[str, Any]], Any]

NAMES = ("number", "record", "score", "best_so_far", "image")
"""What a callback is told: the number of the image whose search it is, the row of the trial table, its score, the best score of
the search so far, and the image [h, w, 3] uint8 that the trial made. The last three may be None."""


class Steps:
    """Calls a callback after each finished trial.

    Args:
        pipeline: its first argument.
        names: what it is told, None = :data:`NAMES`.

    Raises:
        BadInput: it cannot be called, or a name is unknown.
    """

    def __init__(self, pipeline: object, callback: Callback | None, names: Sequence[str] | None):
        if callback is not None and not callable(callback):
            raise BadInput(f"callback_on_step_end must be a function, not {callback!r}")
        for name in names or ():
            if name not in NAMES:
                raise unknown("value of callback_on_step_end_tensor_inputs", name, NAMES)
        self._pipeline, self._callback = pipeline, callback
        self._names = NAMES if names is None else tuple(names)
        self._done = 0

    def told(self, number: int, event: Event) -> None:
        """Take note of an event of search ``number``.

        Raises:
            BadInput: the callback returned something other than what it was given.
        """
        if self._callback is None or not isinstance(event, TrialFinished):
            return
        record = event.record
        everything = (number, record, record.score, record.best_so_far, event.image)
        values = {name: value for name, value in zip(NAMES, everything, strict=True) if name in self._names}
        returned = self._callback(self._pipeline, self._done, record.nfe_cum, dict(values))
        self._done += 1
        changed = [] if not returned else [k for k, v in returned.items() if k not in values or values[k] is not v]
        if changed:
            raise BadInput(f"a callback cannot change a search: it returned another {', '.join(changed)}")
