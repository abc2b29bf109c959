"""Write the results of a search: the best image as a PNG with its recipe, the trial table and an HTML report."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lotts_search.core.result import SearchResult
from lotts_search.core.trial_table import write_parquet
from lotts_search.errors import BadInput, Failure, notice
from lotts_search.report import write_search_page
from lotts_search.work.replacing import replacing
from lotts_search.work.requests import Bytes

RESULTS = "best.png", "trials.parquet", "search.html"
"""Files of a search."""
UNSCORED = "unscored"
"""Folder of the images of a search none of which could be scored."""


def folder_name(prompt: str, strategy: str, command: str) -> str:
    """Return a folder name for a search: readable words and a hash of its command, e.g.
    ``center-red-star-on-gray-lotts-3f9c2b71``."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")
    while len(words.encode()) > 80:
        words = words[:-1]
    name = re.sub(r"[^a-zA-Z0-9]+", "-", strategy).strip("-")
    return "-".join([*filter(None, [words.strip("-"), name]), blake2b(command.encode(), digest_size=4).hexdigest()])


def prepare(folder: Path, command: str, inputs: Sequence[Path] = ()) -> Path:
    """Create the output folder before anything is computed, and warn if it holds the results of another search.

    Args:
        inputs: files that the search reads; its command cannot be repeated once they are replaced.

    Raises:
        BadInput: the folder cannot be created or written to, or a result would replace a folder or an input.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot write there: {error.strerror or error}") from error
    for name in RESULTS:
        path = folder.resolve() / name
        if path.is_dir():
            raise BadInput(f"--out {folder}: {name} is a folder there, and a result of this name is written")
        for file in inputs:
            if path in (file.resolve(), file.parent.resolve() / file.name):
                raise BadInput(f"--out {folder}: a result would replace {file}, which the search starts from")
    try:
        with Image.open(folder / "best.png") as before:
            found = before.text.get("command")  # type: ignore[attr-defined]
    except (OSError, ValueError, SyntaxError, AttributeError, Image.DecompressionBombError):
        found = None
    if found not in (None, command):
        notice(f"{folder} holds the results of another search, which are replaced: {found}")
    return folder


def save_png(path: Path, image: Bytes, text: Mapping[str, str]) -> None:
    """Write an image [h, w, 3] with text metadata (PNG iTXt chunks), atomically."""
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=info)


def save(result: SearchResult, out: Path, command: str, recipe: Mapping[str, object]) -> dict[str, object]:
    """Write ``best.png``, ``trials.parquet`` and ``search.html`` to ``out``; where no image has a score, all images
    instead of the best.

    Args:
        result: a finished or interrupted search.
        out: folder; created if missing.
        command: the command that repeats the search.
        recipe: the command's options by name; stored with ``command`` in the metadata of the PNG.

    Returns:
        The JSON object that ``--json`` prints: score, nfe, images, flops, failed (trials), best (the PNG), out, and more.

    Raises:
        Failure: files could not be written, for example to a full disk; the others were.
    """
    ledger, image = result.ledger, result.image
    best, table, page = (out / name for name in RESULTS)
    writers: dict[Path, Callable[[], object]] = {
        table: lambda: write_parquet(result.to_table(), table),
        page: lambda: write_search_page(result, page, command),
    }
    if image is not None:
        full = {**recipe, "score": result.score, "trial": result.best.trial_id if result.best else None}
        text = {"command": command, "recipe": json.dumps(full, ensure_ascii=False)}
        writers = {best: lambda: save_png(best, image, text)} | writers
    else:  # none could be scored
        for trial, unscored in result.images.items():
            path = out / UNSCORED / f"{trial}.png"
            writers[path] = partial(save_png, path, unscored, {"command": command})
    # What an earlier search left would be taken for results of this one.
    for path in {best, *(out / UNSCORED).glob("*.png")} - writers.keys():
        path.unlink(missing_ok=True)
    errors: dict[str, OSError] = {}
    for path, write in writers.items():
        try:
            write()
        except OSError as error:
            errors[path.name] = error
    if errors:
        why = next(iter(errors.values()))
        kept = [path.name for path in writers if path.name not in errors]
        raise Failure(
            f"cannot write {', '.join(errors)} to {out}: {why.strerror or why}; written: {', '.join(kept) or 'nothing'}"
        )
    return {
        "score": result.score,
        "nfe": ledger.nfe,
        "images": ledger.images,
        "flops": ledger.flops,
        "failed": asdict(result.failures),
        "best": str(best) if image is not None else None,
        "out": str(out),
        "report": str(page),
        "trials": str(table),
        "nfe_wasted": ledger.nfe_wasted,
        **({"stopped": ledger.stopped, "saved_nfe": ledger.left.nfe} if ledger.stopped else {}),
        "device_s": round(ledger.device_s, 3),
        "command": command,
        **{k: recipe[k] for k in ("prompt", "model", "strategy", "verifier", "seed") if k in recipe},
    }
