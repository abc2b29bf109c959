"""How far a study is, from the files of its run folder: on any machine that sees the folder, whether it runs or not."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lotts_search.core.failures import Failures
from lotts_search.errors import BadInput
from lotts_search.study.folder import DRIVERS
from lotts_search.study.remote import Mirror, is_remote
from lotts_search.study.watch import NAME, Snapshot, read, together

SILENT_S = 600.0
"""Seconds without a written file after which a running study may have been killed."""


@dataclass(frozen=True)
class Status:
    """The state of a study.

    Attributes:
        status: as in ``study.json``; ``silent`` where it should be running and has written nothing for :data:`SILENT_S`.
        error: why it failed; "" where it did not.
        command: resumes it.
        written_s: seconds since a file of the folder was written.
        done, failed, open, begun: numbers of searches; those begun are open, and have finished trials.
        nfe: of finished searches.
        rate: NFE per second of all runs together, None before a search has finished.
        left_s: seconds at this rate, at most; None where that is not known, such as for budgets of images.
        busy: share of the time in which generators computed; None before they have.
        failed_trials: of finished searches.
        now: what its drivers wrote last while it runs, a few seconds ago; at a URL as of the last upload.
    """

    name: str
    status: str
    error: str
    command: str
    written_s: float
    done: int
    failed: int
    open: int
    begun: int
    nfe: float
    rate: float | None
    left_s: float | None
    busy: float | None
    failed_trials: Failures
    now: Snapshot | None = None


def status_of(place: Path | str) -> Status:
    """Return the state of the study in a run folder, which is only read, and of which a URL's small files are downloaded.

    Raises:
        BadInput: it is not the folder of a study.
        Failure: a URL cannot be read.
    """
    if not is_remote(place):
        folder = Path(place)
        begun = [*folder.glob("journal/*.journal"), *folder.glob(f"{DRIVERS}/*/journal/*.journal")]
        return _status(folder, str(place), len(begun))
    with tempfile.TemporaryDirectory(prefix="lotts-") as name:
        names = Mirror(str(place), Path(name)).download(lambda name: name == "study.json" or name.endswith(NAME))
        return _status(Path(name), str(place), sum(name.endswith(".journal") for name in names))


def _status(folder: Path, place: str, begun: int) -> Status:
    try:
        study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        searches = study["searches"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{place} is not the folder of a study: it has no study.json that can be read") from error
    now = together(found for path in (folder, *folder.glob(f"{DRIVERS}/*")) if (found := read(path)) is not None)
    written = (
        max(study.get("finished") or 0.0, now.at if now is not None else 0.0) if is_remote(place) else _written(folder)
    )
    written_s = max(0.0, time.time() - written)
    by_status = {status: [s for s in searches if s["status"] == status] for status in ("done", "failed", "open")}
    nfe = sum(search["nfe"] or 0.0 for search in searches)
    rate = nfe / study["seconds"] if nfe and study["seconds"] else None
    budgets = [search["budget_nfe"] for search in by_status["open"]]
    left = sum(budgets) / rate if rate and None not in budgets else None
    silent = study["status"] == "running" and written_s > SILENT_S
    return Status(
        name=study["name"],
        status="silent" if silent else study["status"],
        error=study["error"],
        command=study["command"],
        written_s=written_s,
        done=len(by_status["done"]),
        failed=len(by_status["failed"]),
        open=len(by_status["open"]),
        begun=begun,
        nfe=nfe,
        rate=rate,
        left_s=left,
        busy=study.get("busy"),
        failed_trials=Failures(**study["failed_trials"]),
        now=now if study["status"] == "running" and not silent else None,
    )


def _written(folder: Path) -> float:
    """Return the time at which a file of the folder was last written, in seconds since the epoch."""
    latest = 0.0
    for path in (folder / "study.json", *folder.glob("journal/*.*"), *folder.glob(f"{DRIVERS}/*/journal/*.*")):
        with suppress(FileNotFoundError):  # a search has finished this very moment
            latest = max(latest, path.stat().st_mtime)
    return latest
