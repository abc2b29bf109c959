"""Export the returned images of a study in the folder layouts that other projects' scorers read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from lotts_search.curves import Setup
from lotts_search.errors import BadInput, Failure, notice, unknown
from lotts_search.geneval.tasks import Task
from lotts_search.study.returned import Returned, returned_images
from lotts_search.work.replacing import replacing

LAYOUTS = ("flat", "geneval")


def export(run: Path, out: Path, layout: str, metadata: Path | None = None) -> dict[str, int]:
    """Copy the returned images of a study, one folder per model, strategy and budget.

    ``flat`` writes ``p00000_s0.png`` (prompt 0, first seed) and ``scores.jsonl``, a line per image. ``geneval`` writes
    ``00000/metadata.jsonl`` and ``00000/samples/0000.png``, the layout of GenEval (Ghosh et al. 2023), whose
    ``evaluate_images.py`` reads it.

    Args:
        run: a run folder, see ``docs/run-folder.md``.
        layout: ``flat`` or ``geneval``.
        metadata: for ``geneval``, a JSONL file with a key ``prompt``, e.g. GenEval's ``evaluation_metadata.jsonl``: its
            lines are copied, and their order is that of the folders. Without it the order is that of the trial table,
            and a line holds the task that the prompt names, or the prompt alone.

    Returns:
        The number of images by folder.

    Raises:
        BadInput: no study, an unknown layout, a broken metadata file, or a prompt of the study that it lacks.
        Failure: an image was not kept, or ``out`` cannot be written.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    prompts, of_setups = returned_images(run)
    lines = _metadata(metadata) if metadata is not None else {}
    if lines and (lacking := [text for text in prompts if text not in lines]):
        raise BadInput(f"{metadata} lacks {len(lacking)} of the study's prompts, e.g. {lacking[0]!r}")
    places = {text: i for i, text in enumerate(lines or prompts)}
    found = {_folder(setup): some for setup, some in of_setups.items()}
    for folder, some in found.items():
        try:
            _write(out / folder, some, layout, places, lines)
        except OSError as error:
            raise Failure(f"{out / folder} cannot be written: {error.strerror}") from error
    return {folder: len(some) for folder, some in found.items()}


def _folder(setup: Setup) -> str:
    """Return a path that no other setup has: readable names, and a hash where they were changed."""
    names = [setup.model, f"{setup.label} {setup.budget}"]
    plain = [re.sub(r"[^\w.,=+-]+", "-", name).strip("-.") for name in names]
    if [name.replace(" ", "-") for name in names] != plain:
        plain[-1] += "-" + blake2b("\n".join(names).encode(), digest_size=4).hexdigest()
    return "/".join(name or "_" for name in plain)


def _metadata(path: Path) -> dict[str, str]:
    """Return the lines of a JSONL file by prompt."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        found = {str(json.loads(line)["prompt"]): line for line in lines}
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} must have a JSON object with a key 'prompt' on every line: {error}") from error
    if len(found) < len(lines):
        notice(f"{path} repeats {len(lines) - len(found)} prompts: the last line of each counts")
    return found


def _line(prompt: str) -> str:
    """Return the metadata of a prompt as a line of JSON: its task, if it is one of GenEval's."""
    try:
        task = Task.of(prompt).metadata
    except BadInput:
        task = {}
    return json.dumps({**task, "prompt": prompt}, ensure_ascii=False)


def _write(
    folder: Path, some: Sequence[Returned], layout: str, places: Mapping[str, int], lines: Mapping[str, str]
) -> None:
    if layout == "geneval":
        for one in some:
            where = folder / f"{places[one.prompt]:05d}"
            (where / "samples").mkdir(parents=True, exist_ok=True)
            (where / "metadata.jsonl").write_text(lines.get(one.prompt) or _line(one.prompt))
            shutil.copyfile(one.image, where / "samples" / f"{one.sample:04d}.png")
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for one in sorted(some, key=lambda one: (places[one.prompt], one.sample)):
        file = f"p{places[one.prompt]:05d}_s{one.sample}.png"
        shutil.copyfile(one.image, folder / file)
        rows.append(json.dumps({"file": file, **one.about}, ensure_ascii=False) + "\n")
    with replacing(folder / "scores.jsonl") as temporary:
        temporary.write_text("".join(rows), encoding="utf-8")
