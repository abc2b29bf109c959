"""The images that a study returned, as files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lotts_search.curves import Results, Setup
from lotts_search.curves.panel import returned, searched
from lotts_search.curves.results import load_whole
from lotts_search.errors import BadInput, Failure, notice


@dataclass(frozen=True)
class Returned:
    """The image that a search returned under a budget.

    Attributes:
        prompt: the prompt.
        sample: index of the search among those of the prompt, by seed.
        image: the PNG file in the run folder.
        about: prompt, seed, score and metrics.
    """

    prompt: str
    sample: int
    image: Path
    about: Mapping[str, Any]


def returned_images(run: Path) -> tuple[list[str], dict[Setup, list[Returned]]]:
    """Return the prompts of a study, in the order of its trial table, and its returned images by model, strategy and budget.

    Args:
        run: a run folder, see ``docs/run-folder.md``.

    Raises:
        BadInput: no study.
        Failure: an image was not kept.
    """
    if not run.is_dir():
        raise BadInput(f"{run} is no run folder: images are beside a study's trials.parquet")
    results, table = load_whole(run)
    hashes = table.column("image").to_pylist()
    found = {setup: list(_of(results, setup, hashes, run / "images")) for setup in results.setups}
    if lost := {one.image.name for some in found.values() for one in some if not one.image.is_file()}:
        raise Failure(f"{len(lost)} returned images are not in {run / 'images'}: run the study with `images: best`")
    return list(dict.fromkeys(results.trials.texts)), found


def _of(results: Results, setup: Setup, hashes: Sequence[str | None], images: Path) -> Iterator[Returned]:
    trials = results.trials
    rows = returned(trials, setup)
    samples: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: int(trials.seed[trials.search[row]])):
        search = int(trials.search[row])
        prompt = int(trials.prompt[search])
        text = trials.texts[prompt]
        values = {name: float(trials.values(name)[row]) for name in ("score", *trials.metrics)}
        about = {
            "prompt": text, "prompt_id": trials.prompts[prompt], "seed": int(trials.seed[search]), "model": setup.model,
            "strategy": setup.label, "budget": setup.budget,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }  # fmt: skip
        samples[text] = samples.get(text, -1) + 1
        yield Returned(text, samples[text], images / f"{hashes[trials.order[row]]}.png", about)
    if short := int((trials.setup == trials.setups.index(searched(trials, setup))).sum()) - len(rows):
        notice(f"{short} searches by {setup.label} on {setup.model} have no image and are left out")
