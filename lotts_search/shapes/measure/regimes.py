"""Changes by local and global trials of a shapes model, for the theory of :mod:`lotts_search.arithmetic.dominance`.

They are read from the images of a run, or measured with a model. The patches of the theory are the nine cells, and the
oracle decides which of them are flawed; it does not guide any search.
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
from lotts_search.shapes.measure.common import JudgedImage, cell_means, sample
from lotts_search.shapes.measure.localization import damaged_renders
from lotts_search.shapes.measure.slices import SLICES, local_and_global
from lotts_search.shapes.world.oracle import Verdict, judge_many
from lotts_search.shapes.world.scene import Split, parse_caption, scenes
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Bytes

BLOCK = 4
"""Side of the blocks of a mask in pixels: one position of the latent."""
SELECTED = 0.5
"""A cell is selected if at least this share of it is inside the mask."""


@dataclass
class SliceTrials:
    """The local and global trials on the images of one slice."""

    local: list[Change] = field(default_factory=list)
    global_: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """The theory's prediction for a slice, and the measured gains.

    Attributes:
        trials: number of local trials.
        regime: the parameters of the theory, estimated from the trials; None if there are too few trials.
        why: the reason if there is no regime.
        local, global_: measured gain per NFE of a local and of a global trial if every trial is accepted.
        kept_local, kept_global: the same if the better of parent and child is kept.
    """

    trials: int
    regime: Regime | None
    why: str = ""
    local: Interval | None = None
    global_: Interval | None = None
    kept_local: Interval | None = None
    kept_global: Interval | None = None


def change(before: Verdict, after: Verdict, selected: Bools) -> Change:
    """Return the change between two verdicts; the value of a cell is its part of the oracle's quality."""
    value = [np.where(v.right, 1 - v.damage, 0) / len(v.right) for v in (before, after)]
    return Change(
        np.asarray(value[0], np.float64), np.asarray(value[1], np.float64), before.flawed, after.flawed, selected
    )


def find(trials: SliceTrials, cost_local: float, cost_global: float) -> Finding:
    """Estimate the regime of a slice and its measured gains. The costs are the NFE of a local and of a global trial."""
    count = len(trials.local)
    try:
        regime = estimate(trials.local, trials.global_, cost_local, cost_global)
    except BadInput as error:
        return Finding(count, None, str(error))
    per_nfe = [
        np.array([c.gain for c in changes]) / cost
        for changes, cost in ((trials.local, cost_local), (trials.global_, cost_global))
    ]
    return Finding(count, regime, "", *map(interval, per_nfe), *(interval(np.maximum(0, gain)) for gain in per_nfe))


def slice_of(verdict: Verdict) -> str:
    """Return the name of the slice to which an image belongs."""
    if not verdict.background_right:
        return "defect of the whole image"
    share = verdict.flawed.sum() / max(1, verdict.expected.sum())
    return "sparse defects" if share <= 1 / 3 else "usual defects" if share <= 3 / 4 else "dense defects"


def changed_mask(before: Bytes, after: Bytes, ratio: float) -> Bools:
    """Return the blocks that changed most between two images [h, w], as many as a mask with this ratio has."""
    difference = np.abs(before.astype(np.float64) - after.astype(np.float64)).mean(axis=2)
    height, width = (side // BLOCK for side in difference.shape)
    blocks = difference.reshape(height, BLOCK, width, BLOCK).mean(axis=(1, 3)).ravel()
    mask = np.zeros(blocks.size, dtype=bool)
    mask[np.argsort(-blocks, kind="stable")[: round(ratio * blocks.size)]] = True
    return mask.reshape(height, width)


def measured(pool: Pool, images: int = 60, split: Split = "test") -> dict[str, SliceTrials]:
    """Run one local and one global trial on damaged renders of each slice and on plain samples; return all by slice."""
    found: dict[str, SliceTrials] = {}
    for name, (rate, light) in SLICES.items():
        found[name] = _changes(pool, damaged_renders(pool, split, images, rate, light=light))
    plain = [group[0] for group in sample(pool, scenes(split, images, seed=2), 1)]
    found["plain samples"] = _changes(pool, plain, seed=1)
    return found


def _changes(pool: Pool, before: list[JudgedImage], seed: int = 0) -> SliceTrials:
    masks, refined, resampled = local_and_global(pool, before, seed)
    everything = np.ones(9, dtype=bool)
    return SliceTrials(
        [
            change(b.verdict, a.verdict, cell_means(mask) >= SELECTED)
            for b, a, mask in zip(before, refined, masks, strict=True)
        ],
        [change(b.verdict, a.verdict, everything) for b, a in zip(before, resampled, strict=True)],
    )


def from_run(run: Path) -> tuple[dict[str, SliceTrials], float, float]:
    """Read the trials of a shapes model from a run folder: by slice, and the mean NFE of a local and of a global one.

    Local trials are refinements inside a mask; refinements of the same parent share the cost of its localization. A
    global trial replaces a plain sample by the next one of the same search. The masks are inferred from the images, see
    :func:`changed_mask`.

    Raises:
        BadInput: the folder has no trials or no images, or its prompts are not shapes captions.
    """
    rows = _rows(run)
    by_search: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_search[row["search_id"]].append(row)
    verdicts = _verdicts(run, rows)
    found: dict[str, SliceTrials] = defaultdict(SliceTrials)
    local_nfe, refined, sample_nfe = 0.0, 0, list[float]()
    everything = np.ones(9, dtype=bool)
    for search, trials in by_search.items():
        # Trial ids are unique only within a search.
        seen = {t["trial_id"]: verdicts[search, t["trial_id"]] for t in trials if (search, t["trial_id"]) in verdicts}
        samples = [t for t in trials if t["kind"] == "sample" and t["trial_id"] in seen]
        sample_nfe += [t["nfe"] for t in samples]
        local_nfe += sum(t["nfe"] for t in trials if t["kind"] in ("localize", "refine"))
        for one, other in pairwise(samples):
            before, after = seen[one["trial_id"]][1], seen[other["trial_id"]][1]
            found[slice_of(before)].global_.append(change(before, after, everything))
        for trial in trials:
            if trial["kind"] != "refine" or trial["parent_id"] not in seen or trial["trial_id"] not in seen:
                continue
            (image, before), (child, after) = seen[trial["parent_id"]], seen[trial["trial_id"]]
            mask = changed_mask(image, child, trial["mask_ratio"] or 1.0)
            found[slice_of(before)].local.append(change(before, after, cell_means(mask) >= SELECTED))
            refined += 1
    if not refined or not sample_nfe:
        raise BadInput(f"{run} has {refined} refinements and {len(sample_nfe)} samples with images; both are needed")
    return dict(found), local_nfe / refined, float(np.mean(sample_nfe))


def _rows(run: Path) -> list[Mapping[str, Any]]:
    import pyarrow.parquet as pq

    file = run / "trials.parquet"
    if not file.is_file():
        raise BadInput(f"no trials.parquet in {run}; expected a folder written by `lotts-search study`")
    columns = ["search_id", "trial_id", "parent_id", "kind", "prompt", "model", "mask_ratio", "nfe", "image", "status"]
    rows: list[Mapping[str, Any]] = pq.read_table(file, columns=columns).to_pylist()
    return [row for row in rows if row["status"] == "done"]


def _verdicts(run: Path, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[Bytes, Verdict]]:
    """Return images and verdicts of complete samples and refinements, by search and trial id."""
    wanted = [r for r in rows if r["kind"] in ("sample", "refine") and r["image"]]
    files = {r["image"]: run / "images" / f"{r['image']}.png" for r in wanted}
    kept = [r for r in wanted if files[r["image"]].is_file()]
    if not kept:
        raise BadInput(f"no images of samples or refinements in {run / 'images'}; run the study with all images kept")
    try:
        shown = [parse_caption(r["prompt"]) for r in kept]
    except ValueError as error:
        raise BadInput(f"only runs of shapes models can be compared with the theory: {error}") from error
    images = [np.asarray(Image.open(files[r["image"]]).convert("RGB")) for r in kept]
    judged = judge_many(np.stack(images), shown)
    return {(r["search_id"], r["trial_id"]): (i, v) for r, i, v in zip(kept, images, judged, strict=True)}
