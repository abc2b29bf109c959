"""Show progress on stderr: a live bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from lotts_search.cli.console import Console
from lotts_search.core.budget import Budget
from lotts_search.core.events import Event, TrialFinished

EVERY_S = 5.0
"""Seconds between lines without a terminal."""


def span(seconds: float) -> str:
    """Format a time as ``0:42``, ``12:05`` or ``3:04:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Live:
    """A context that shows progress.

    Args:
        what: description of the current work.
        quiet: show nothing.
    """

    def __init__(self, what: str, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._begun = self._printed = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self.console.is_terminal and not quiet:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}", markup=False),
                TimeElapsedColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task(what, total=1.0, status="")
        else:
            self.console.print(what)

    @property
    def elapsed(self) -> float:
        """Return the seconds since creation."""
        return time.monotonic() - self._begun

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, share: float, status: str, what: str | None = None) -> None:
        """Show that ``share`` (0..1) of the work is done, with a ``status`` text; ``what`` replaces the description."""
        if self._bar is not None:
            self._bar.update(self._task, completed=min(share, 1.0), status=status)
            if what is not None:
                self._bar.update(self._task, description=what)
            return
        if what is not None:
            self.console.print(what)
        if time.monotonic() - self._printed >= EVERY_S:
            self._printed = time.monotonic()
            self.console.print(f"{self.elapsed:5.0f} s  {100 * min(share, 1.0):3.0f} %  {status}", soft_wrap=True)


class SearchProgress:
    """Show the trials of one search as they arrive; pass it as ``on_event``."""

    def __init__(self, live: Live, budget: Budget) -> None:
        self.live, self.budget = live, budget
        self.images = 0
        self._begun = live.elapsed

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TrialFinished):
            return
        trial, seconds = event.record, self.budget.seconds
        self.images += trial.images
        passed = (self.live.elapsed - self._begun) / seconds if seconds else 0.0
        best = "" if trial.best_so_far is None else f"best {trial.best_so_far:.3f}  "
        self.live.update(max(event.spent, passed), f"{best}{trial.nfe_cum:g} NFE  {self.images} images")
