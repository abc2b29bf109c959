"""Writing what finished searches leave to the run folder: images, rows, and no journal any more."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lotts_search.core.records import JournalError
from lotts_search.core.result import SearchResult
from lotts_search.core.trial_table import TrialRecord
from lotts_search.study.folder import RunFolder
from lotts_search.study.metrics import complete, leaders
from lotts_search.study.searches import Task
from lotts_search.study.spec import Keep
from lotts_search.work.replacing import replacing

COMPRESSION = 4
"""zlib's level for images: files as small as with the usual 6, in one to two thirds of the time."""
MERGE_S = 60.0
"""Least seconds between updates of ``trials.parquet`` during a run; also at least :data:`MERGE_TIMES` as long as one
takes."""
MERGE_TIMES = 100.0
SYNC_S = 1.0
"""Seconds between two checkpoints: the rows of finished searches are on the disk then, and their journals are deleted."""


class Writer:
    """Writes what searches leave, images in several threads and rows in one.

    Args:
        columns: all columns ``metric_*``.
        images: which images are kept.
        merge: called from time to time to update the files of the folder.

    Attributes:
        seconds: spent on it.
    """

    def __init__(self, folder: RunFolder, columns: Sequence[str], images: Keep, merge: Callable[[], object]):
        self.folder, self.seconds = folder, 0.0
        self._columns, self._keep, self._merge = columns, images, merge
        self._images = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "lotts-search images")
        self._rows = ThreadPoolExecutor(1, "lotts-search writer")
        self._disk = ThreadPoolExecutor(1, "lotts-search disk")
        self._over: list[Task] = []
        self._synced = self._merged = time.monotonic()
        self._pause = MERGE_S

    async def write(self, task: Task, result: SearchResult, over: bool) -> None:
        """Write those images of a search that the study keeps, then its rows.

        Args:
            over: its journal is not needed any more.

        Raises:
            JournalError: they cannot be written.
        """
        rows = {"all": complete(result.trials), "best": leaders(result.trials), "none": []}[self._keep]
        write = asyncio.get_running_loop().run_in_executor
        try:
            await asyncio.gather(*(write(self._images, self._image, task, result, row) for row in rows))
            await write(self._rows, self._add, task, result, over)
        except OSError as error:
            raise JournalError(f"cannot write to {self.folder.path}: {error}") from error

    def close(self) -> None:
        """Finish what was begun."""
        self._images.shutdown()
        self._rows.shutdown()
        self._disk.submit(self._checkpoint, self._over)
        self._disk.shutdown()

    def _image(self, task: Task, result: SearchResult, row: TrialRecord) -> None:
        began = time.monotonic()
        path = self.folder.images / f"{row.image}.png"
        if path.is_file():
            return
        recipe = {
            "prompt": result.prompt, "model": task.model.model, "strategy": task.entry.name,
            "settings": json.loads(task.entry.arguments), "verifier": result.verifier, "seed": result.seed,
            "nfe": result.budget.nfe, "images": result.budget.images, "flops": result.budget.flops, "score": row.score, "trial": row.trial_id,
        }  # fmt: skip
        info = PngInfo()
        info.add_itxt("recipe", json.dumps(recipe, ensure_ascii=False))
        with replacing(path) as temporary:
            Image.fromarray(result.images[row.trial_id]).save(
                temporary, format="PNG", pnginfo=info, compress_level=COMPRESSION
            )
        self.seconds += time.monotonic() - began

    def _add(self, task: Task, result: SearchResult, over: bool) -> None:
        began = time.monotonic()
        self.folder.add(result.trials, self._columns)
        if over:
            self._over.append(task)
        if began - self._synced > SYNC_S:  # beside the rows, which do not wait for the disk
            self._disk.submit(self._checkpoint, self._over)
            self._over, self._synced = [], began
        if began - self._merged > self._pause:
            self._merge()
            self._merged = time.monotonic()
            self._pause = max(MERGE_S, MERGE_TIMES * (self._merged - began))
        self.seconds += time.monotonic() - began

    def _checkpoint(self, over: Sequence[Task]) -> None:
        self.folder.sync()
        for task in over:
            self.folder.forget(task)
