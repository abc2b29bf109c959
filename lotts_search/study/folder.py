"""The run folder on disk, which ``docs/run-folder.md`` describes. It has one writer, which holds its lock."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lotts_search.core.journal import Journal
from lotts_search.core.records import JournalError, Records
from lotts_search.core.trial_table import TrialRecord, pack, to_table, unpack, write_parquet
from lotts_search.errors import BadInput
from lotts_search.study.searches import Task
from lotts_search.work.replacing import replacing

if TYPE_CHECKING:
    import pyarrow as pa


DRIVERS = "drivers"
"""Folder of the run folders of several drivers, see :mod:`lotts_search.study.drivers`."""


class RunFolder:
    """A study's folder, opened for writing.

    Args:
        path: the folder; created if it is missing.

    Raises:
        BadInput: it is not the folder of a study, or another process writes to it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.journals = path / "journal"
        self.images = path / "images"
        if path.is_dir() and any(path.iterdir()) and not self.journals.is_dir() and not (path / "study.json").is_file():
            raise BadInput(f"{path} is not the folder of a study, and not empty: choose another --out")
        self._lock = FileLock(self.journals / "lock")
        try:
            for folder in (self.journals, self.images):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise BadInput(f"another process is writing to {path}") from error
        except OSError as error:
            raise BadInput(f"--out {path}: cannot write there: {error.strerror or error}") from error
        for parent in (self.path, self.journals, self.images):
            for left in parent.glob(".*.tmp"):  # from a process that was killed while writing
                left.unlink()
        self._log: Records | None = None

    def close(self) -> None:
        """Release the lock of the folder."""
        if self._log is not None:
            self._log.close()
            self._log = None
        self._lock.release()

    def study(self) -> dict[str, Any]:
        """Return the content of ``study.json``; {} where there is none."""
        try:
            found: dict[str, Any] = json.loads((self.path / "study.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def copy_file(self, yaml: Path) -> None:
        """Keep a copy of the study file."""
        with suppress(shutil.SameFileError):
            shutil.copyfile(yaml, self.path / "study.yaml")

    def write_study(self, study: Mapping[str, Any]) -> None:
        """Write ``study.json``; on a full disk over the old one, so that it does not say that the study is running."""
        path = self.path / "study.json"
        text = json.dumps(study, ensure_ascii=False, indent=1, default=str) + "\n"
        try:
            with replacing(path, sync=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError:
            dense = json.dumps(study, ensure_ascii=False, separators=(",", ":"), default=str).encode()
            if not path.is_file() or len(dense) > path.stat().st_size:
                raise
            with path.open("r+b") as file:
                file.write(dense)
                file.truncate()

    def journal(self, task: Task, retry: bool) -> Journal:
        """Return the journal of a search; with ``retry``, without its failed trials."""
        return Journal(self.journals / f"{task.search_id}.journal", task.search_id, retry=retry)

    def forget(self, task: Task) -> None:
        """Delete the journal of a finished search, which a killed process may have left."""
        (self.journals / f"{task.search_id}.journal").unlink(missing_ok=True)

    def begun(self) -> set[str]:
        """Return the ids of searches that have a journal."""
        return {path.stem for path in self.journals.glob("*.journal")}

    def add(self, trials: Iterable[TrialRecord], metrics: Iterable[str]) -> None:
        """Keep the rows of a finished search, with all columns ``metrics``, even if no row has a value there."""
        if self._log is None:
            self._log = Records(self.journals / "finished.log")
        self._log.append(pack(trials, metrics))

    def sync(self) -> None:
        """Wait until the added rows are on the disk; may be called in any thread."""
        if (log := self._log) is not None:
            log.sync()

    def rows(self) -> pa.Table | None:
        """Return the rows of all finished searches, including those set aside; the latest of a search finished twice."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        bulk: list[pa.Table] = []
        for path in (self.path, *sorted((self.path / DRIVERS).glob("*"))):
            own = [
                pq.read_table(path / name) for name in ("aside.parquet", "trials.parquet") if (path / name).is_file()
            ]
            if own and bulk:  # a driver's are newer
                newer = pa.concat_arrays([chunk for table in own for chunk in table["search_id"].chunks]).unique()
                bulk = [table.filter(pc.invert(pc.is_in(table["search_id"], newer))) for table in bulk]
            bulk += own
        found: dict[str, list[TrialRecord]] = {}
        columns: set[str] = set()
        for record in self._finished():
            try:
                trials, metrics = unpack(record)
            except ValueError as error:
                log = self.journals / "finished.log"
                raise JournalError(f"{log} was written by another version of lotts-search: {error}") from error
            found[trials[0].search_id] = trials
            columns.update(metrics)
        if not bulk and not found:
            return None
        if found and bulk:
            newer = pa.array(list(found), pa.string())
            bulk = [table.filter(pc.invert(pc.is_in(table["search_id"], newer))) for table in bulk]
        if found:
            bulk.append(to_table(chain.from_iterable(found.values()), columns))
        return pa.concat_tables(bulk, promote_options="default").combine_chunks()

    def merge(self, tasks: Sequence[Task], run_id: str) -> pa.Table | None:
        """Write the finished searches of ``tasks`` to ``trials.parquet``, the others to ``aside.parquet``.

        The searches are in the order of ``tasks``, with the study's present labels and names.

        Returns:
            The content of ``trials.parquet``; None where no search has finished.
        """
        rows = self.rows()
        if rows is None:
            return None
        mine, others = arrange(rows, tasks, run_id)
        # Those set aside go first, so that every row is in one of the files at all times.
        if len(others):
            write_parquet(others, self.path / "aside.parquet", compression="zstd")
        write_parquet(mine, self.path / "trials.parquet", compression="zstd")
        if not len(others):
            (self.path / "aside.parquet").unlink(missing_ok=True)
        if self._log is not None:
            self._log.close()
            self._log = None
        (self.journals / "finished.log").unlink(missing_ok=True)
        return mine

    def _finished(self) -> Iterable[bytes]:
        path = self.journals / "finished.log"
        if not path.is_file():
            return ()
        if self._log is None:
            self._log = Records(path)
        return self._log


def arrange(rows: pa.Table, tasks: Sequence[Task], run_id: str) -> tuple[pa.Table, pa.Table]:
    """Return the rows of ``tasks`` in their order, with the study's present labels and names, and the other rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.array([task.search_id for task in tasks], pa.string())
    known = pc.is_valid(pc.index_in(rows["search_id"], ids))
    others, mine = rows.filter(pc.invert(known)), rows.filter(known)
    where = pc.index_in(mine["search_id"], ids).to_numpy()
    order = np.argsort(where, kind="stable")
    mine, where = mine.take(pa.array(order)), where[order]
    names = {
        "prompt_id": [task.prompt.id for task in tasks],
        "model": [task.model.label for task in tasks],
        "label": [task.entry.label for task in tasks],
        "run_id": [run_id] * len(tasks),
    }
    for column, values in names.items():
        fresh = pa.array(values, pa.string()).take(pa.array(where))
        mine = mine.set_column(mine.schema.get_field_index(column), column, fresh)
    return mine, others
