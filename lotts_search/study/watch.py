"""How far a running study is, in a small file of its folder that is written every few seconds, and for metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lotts_search.study.runner import Progress
from lotts_search.work.replacing import replacing

NAME = "progress.json"
EVERY_S = 5.0
"""Seconds between two writings."""


@dataclass(frozen=True)
class Snapshot:
    """A running study at one moment.

    Attributes:
        at: seconds since the epoch.
        searches, finished, failed: numbers of searches of this run, of those ended, and of those ended without success.
        nfe: of finished trials; ``left``: of all that is planned and not done.
        rate: NFE per second of late.
        busy: share of the time in which the generators computed, 0..1.
        fill: rows of requested work over the rows of all batches, at most 1; below 1 the generators lack work.
        waiting: pieces of generating work that are requested and not done.
    """

    at: float
    searches: int = 0
    finished: int = 0
    failed: int = 0
    nfe: float = 0.0
    left: float = 0.0
    rate: float = 0.0
    busy: float = 0.0
    fill: float = 0.0
    waiting: int = 0

    @classmethod
    def of(cls, progress: Progress, batch: int) -> Snapshot:
        """Return what is so now; ``batch`` is the rows of a generator's batch."""
        meter = progress.meter
        if meter is None:
            return cls(time.time(), progress.total, progress.finished, progress.failed)
        fill = min(1.0, meter.rows / (meter.generators * batch))
        return cls(
            time.time(), progress.total, progress.finished, progress.failed, progress.nfe,
            max(0.0, progress.planned - progress.nfe), meter.rate, meter.busy or 0.0, fill, meter.waiting,
        )  # fmt: skip


def together(parts: Iterable[Snapshot]) -> Snapshot | None:
    """Return the sum of the drivers of a study; shares are their means. None where there is none."""
    rows = [asdict(part) for part in parts]
    if not rows:
        return None
    summed = {field.name: sum(row[field.name] for row in rows) for field in fields(Snapshot)}
    means = {name: summed[name] / len(rows) for name in ("busy", "fill")}
    return Snapshot(**summed | means | {"at": max(row["at"] for row in rows)})


def read(folder: Path) -> Snapshot | None:
    """Return what the driver of a run folder wrote last; None where it wrote nothing that can be read."""
    try:
        return Snapshot(**json.loads((folder / "journal" / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Watch:
    """Writes snapshots into a run folder, at most every :data:`EVERY_S` seconds.

    Args:
        also: called with each of them.
    """

    def __init__(self, folder: Path, also: Callable[[Snapshot], object] = lambda now: None):
        self._path = folder / "journal" / NAME
        self._also = also
        self._written = 0.0

    def write(self, snapshot: Snapshot) -> None:
        """Write it, unless the last one is young."""
        if time.monotonic() - self._written < EVERY_S:
            return
        self._written = time.monotonic()
        with replacing(self._path) as temporary:
            temporary.write_text(json.dumps(asdict(snapshot)), encoding="utf-8")
        self._also(snapshot)

    def close(self) -> None:
        """Delete the file: the study does not run any more."""
        self._path.unlink(missing_ok=True)
