"""Changes by local and global trials of a shapes model, for :mod:`lotts_search.arithmetic.dominance`: from a run's images or measured.

The patches are the nine cells; the oracle says which are flawed. It judges here what was done, and guides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lotts_search.arithmetic.dominance import Bools, Change, Regime, estimate
from lotts_search.curves.intervals import Interval, interval
from lotts_search.errors import BadInput
from lotts_search.shapes.measure.common import JudgedImage, cell_means, locate, refine, sample
from lotts_search.shapes.measure.localization import damaged_renders
from lotts_search.shapes.measure.slices import SLICES
from lotts_search.shapes.world.oracle import Verdict, judge_many
from lotts_search.shapes.world.scene import Split, parse_caption, scenes
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bytes

BLOCK = 4
"""Pixels of a side of the blocks that a mask consists of: one position of the latent."""
SELECTED = 0.5
"""A cell is selected if this share of it is inside the mask."""


@dataclass
class Trials:
    """Local and global trials of the images of one slice."""

    local: list[Change] = field(default_factory=list)
    anew: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """What the theory says of a slice and what was measured there.

    Attributes:
        regime: the numbers that the trials showed; None where they are too few, for the reason ``why``.
        local, anew: measured gain per NFE of a local and of a global trial, all accepted.
        kept_local, kept_anew: the same, the better one of parent and child being kept.
    """

    trials: int
    regime: Regime | None
    why: str = ""
    local: Interval | None = None
    anew: Interval | None = None
    kept_local: Interval | None = None
    kept_anew: Interval | None = None


def change(before: Verdict, after: Verdict, selected: Bools) -> Change:
    """From two verdicts; a cell's value is its part of the oracle's quality."""
    value = [np.where(v.right, 1 - v.damage, 0) / len(v.right) for v in (before, after)]
    return Change(
        np.asarray(value[0], np.float64), np.asarray(value[1], np.float64), before.flawed, after.flawed, selected
    )


def find(trials: Trials, cost_local: float, cost_global: float) -> Finding:
    """Estimate a slice's regime and compare what follows from it with what happened."""
    count = len(trials.local)
    try:
        regime = estimate(trials.local, trials.anew, cost_local, cost_global)
    except BadInput as error:
        return Finding(count, None, str(error))
    local, anew = np.array([c.gain for c in trials.local]), np.array([c.gain for c in trials.anew])
    return Finding(
        count,
        regime,
        "",
        interval(local / cost_local),
        interval(anew / cost_global),
        interval(np.maximum(0, local) / cost_local),
        interval(np.maximum(0, anew) / cost_global),
    )


def slice_of(verdict: Verdict) -> str:
    """Which slice an image belongs to, by the oracle."""
    if not verdict.background_right:
        return "defect of the whole image"
    share = verdict.flawed.sum() / max(1, verdict.expected.sum())
    return "sparse defects" if share <= 1 / 3 else "usual defects" if share <= 3 / 4 else "dense defects"


def changed_mask(before: Bytes, after: Bytes, ratio: float) -> Bools:
    """[h, w] blocks that changed most between two images, as many as a mask of that ratio has: what was resampled."""
    difference = np.abs(before.astype(np.float64) - after.astype(np.float64)).mean(axis=2)
    height, width = (side // BLOCK for side in difference.shape)
    blocks = difference.reshape(height, BLOCK, width, BLOCK).mean(axis=(1, 3)).ravel()
    mask = np.zeros(blocks.size, dtype=bool)
    mask[np.argsort(-blocks, kind="stable")[: round(ratio * blocks.size)]] = True
    return mask.reshape(height, width)


def measured(pool: Pool, images: int = 60, split: Split = "test") -> dict[str, Trials]:
    """One local and one global trial of damaged renders of each slice, and of plain samples."""
    defaults = pool.info.defaults
    found: dict[str, Trials] = {}
    for name, (rate, light) in SLICES.items():
        found[name] = _both(pool, damaged_renders(pool, split, images, rate, light=light), defaults)
    plain = [group[0] for group in sample(pool, scenes(split, images, seed=2), 1)]
    found["plain samples"] = _both(pool, plain, defaults, seed=1)
    return found


def _both(pool: Pool, before: list[JudgedImage], defaults: Any, seed: int = 0) -> Trials:
    masks = [found.mask for found in locate(pool, before, defaults.mask)]
    local = refine(pool, before, masks, start=defaults.t0, integrate=defaults.integrate)
    anew = [group[seed] for group in sample(pool, [p.scene for p in before], seed + 1)]
    everything = np.ones(9, dtype=bool)
    return Trials(
        [
            change(b.verdict, a.verdict, cell_means(mask) >= SELECTED)
            for b, a, mask in zip(before, local, masks, strict=True)
        ],
        [change(b.verdict, a.verdict, everything) for b, a in zip(before, anew, strict=True)],
    )


def from_run(run: Path) -> tuple[dict[str, Trials], float, float]:
    """The trials in a run folder of a shapes model, by slice, with the mean NFE of a local and of a global one.

    Local are refinements inside a mask, the first localization's cost shared among its siblings. Global is another plain
    sample of the same search in the place of the first. The mask is read off the images, see :func:`changed_mask`.

    Raises:
        BadInput: no trials, no images, or prompts that are no shapes captions.
    """
    rows = _rows(run)
    by_search: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_search[row["search_id"]].append(row)
    verdicts = _verdicts(run, rows)
    found: dict[str, Trials] = defaultdict(Trials)
    local_nfe, refined, sample_nfe = 0.0, 0, list[float]()
    everything = np.ones(9, dtype=bool)
    for search, trials in by_search.items():
        # Ids are unique within a search alone.
        seen = {t["trial_id"]: verdicts[search, t["trial_id"]] for t in trials if (search, t["trial_id"]) in verdicts}
        samples = [t for t in trials if t["kind"] == "sample" and t["trial_id"] in seen]
        sample_nfe += [t["nfe"] for t in samples]
        local_nfe += sum(t["nfe"] for t in trials if t["kind"] in ("localize", "refine"))
        for one, other in pairwise(samples):
            before, after = seen[one["trial_id"]][1], seen[other["trial_id"]][1]
            found[slice_of(before)].anew.append(change(before, after, everything))
        for trial in trials:
            if trial["kind"] != "refine" or trial["parent_id"] not in seen or trial["trial_id"] not in seen:
                continue
            (image, before), (child, after) = seen[trial["parent_id"]], seen[trial["trial_id"]]
            mask = changed_mask(image, child, trial["mask_ratio"] or 1.0)
            found[slice_of(before)].local.append(change(before, after, cell_means(mask) >= SELECTED))
            refined += 1
    if not refined or not sample_nfe:
        raise BadInput(
            f"{run} has {refined} refinements and {len(sample_nfe)} samples with images; the theory needs both"
        )
    return dict(found), local_nfe / refined, float(np.mean(sample_nfe))


def _rows(run: Path) -> list[Mapping[str, Any]]:
    import pyarrow.parquet as pq

    file = run / "trials.parquet"
    if not file.is_file():
        raise BadInput(f"there is no trials.parquet in {run}; RUN is a folder that `lotts-search study` wrote")
    columns = ["search_id", "trial_id", "parent_id", "kind", "prompt", "model", "mask_ratio", "nfe", "image", "status"]
    rows: list[Mapping[str, Any]] = pq.read_table(file, columns=columns).to_pylist()
    return [row for row in rows if row["status"] == "done"]


def _verdicts(run: Path, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[Bytes, Verdict]]:
    """Images and verdicts of complete plain samples and refinements, by search and trial."""
    wanted = [r for r in rows if r["kind"] in ("sample", "refine") and r["image"]]
    files = {r["image"]: run / "images" / f"{r['image']}.png" for r in wanted}
    kept = [r for r in wanted if files[r["image"]].is_file()]
    if not kept:
        raise BadInput(
            f"there are no images of samples or refinements in {run / 'images'}; let the study keep all images"
        )
    try:
        shown = [parse_caption(r["prompt"]) for r in kept]
    except ValueError as error:
        raise BadInput(f"the theory is checked on shapes models alone, by their oracle: {error}") from error
    images = [np.asarray(Image.open(files[r["image"]]).convert("RGB")) for r in kept]
    judged = judge_many(np.stack(images), shown)
    return {(r["search_id"], r["trial_id"]): (i, v) for r, i, v in zip(kept, images, judged, strict=True)}
