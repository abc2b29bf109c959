"""Writing a finished search to the run folder: its images and its rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lotts_search.core.result import SearchResult
from lotts_search.study.folder import RunFolder
from lotts_search.study.metrics import complete, leaders
from lotts_search.study.searches import Task
from lotts_search.study.spec import Keep
from lotts_search.work.replacing import replacing
from lotts_search.work.requests import Bytes

COMPRESSION = 4
"""zlib's level for images: files as small as with the usual 6, in one to two thirds of the time."""


def keep(folder: RunFolder, task: Task, result: SearchResult, columns: Sequence[str], images: Keep) -> None:
    """Write those images of a search that the study keeps, then its rows."""
    rows = {"all": complete(result.trials), "best": leaders(result.trials), "none": []}[images]
    for row in rows:
        path = folder.images / f"{row.image}.png"
        if not path.is_file():
            recipe = {
                "prompt": result.prompt, "model": task.model.model, "strategy": task.entry.name,
                "settings": json.loads(task.entry.arguments), "verifier": result.verifier, "seed": result.seed,
                "nfe": result.budget.nfe, "images": result.budget.images, "flops": result.budget.flops, "score": row.score, "trial": row.trial_id,
            }  # fmt: skip
            _write_png(path, result.images[row.trial_id], recipe)
    folder.add(result.trials, columns)


def _write_png(path: Path, image: Bytes, recipe: dict[str, object]) -> None:
    info = PngInfo()
    info.add_itxt("recipe", json.dumps(recipe, ensure_ascii=False))
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=info, compress_level=COMPRESSION)
