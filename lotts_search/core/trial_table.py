"""The trial table: one row per unit of work, in virtual order, as Parquet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from lotts_search.work.replacing import replacing
from lotts_search.work.requests import Bytes, Lineage

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class TrialRecord:
    """One trial: a row of the trial table, see ``docs/run-folder.md``. ``docs/architecture.md`` defines NFE.

    Attributes:
        run_id, search_id, prompt_id: the run, search and prompt that the trial belongs to.
        prompt, model, strategy, search_seed: what the search was; ``strategy_args`` holds the settings as JSON.
        trial_id, parent_id: ids of this trial and of the trial whose candidate it works on.
        kind: sample, encode, refine, advance, localize, score or rewrite.
        label: name of the strategy with its settings in a study.
        budget_nfe, budget_images, budget_flops: budget of the search; None = without that limit.
        steps: T of the search.
        lineage: the chain of seeds that the noise comes from, oldest first.
        start, stop: steps of a segment; None for other trials.
        mask_ratio: share of the latent inside the mask, 0..1; None without one.
        nfe, rows, flops, images, decodes, previews, encodes, scores, device_s: what it used; ``nfe_wasted``: NFE of lost attempts.
        nfe_cum, best_so_far: sum of NFE and best guiding score up to and including this row, in virtual order.
        score: guiding score, higher is better.
        rewrites, fallbacks: requests to the rewriter; revised prompts that the original replaced (see ``error``).
        prompts: revised prompts.
        metrics: held-out scores, the columns ``metric_*``.
        image: content hash of its image, see :func:`image_hash`.
        queue_s, started, finished: seconds in the queue; when it ran, in seconds since the epoch.
        node, actor, attempts: where it ran, and in how many attempts.
        status: done, failed (see ``error``), or cancelled because the search stopped first.
    """

    run_id: str
    search_id: str
    prompt_id: str
    prompt: str
    model: str
    strategy: str
    strategy_args: str
    search_seed: int
    trial_id: str
    parent_id: str | None
    kind: str
    label: str = ""
    budget_nfe: float | None = None
    budget_images: int | None = None
    budget_flops: float | None = None
    steps: int | None = None
    lineage: Lineage = ()
    start: int | None = None
    stop: int | None = None
    mask_ratio: float | None = None
    nfe: float = 0.0
    rows: int = 0
    flops: float = 0.0
    images: int = 0
    decodes: int = 0
    previews: int = 0
    encodes: int = 0
    scores: int = 0
    nfe_wasted: float = 0.0
    nfe_cum: float = 0.0
    best_so_far: float | None = None
    score: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    image: str | None = None
    device_s: float = 0.0
    rewrites: int = 0
    fallbacks: int = 0
    prompts: tuple[str, ...] = ()
    queue_s: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    node: str = ""
    actor: str = ""
    attempts: int = 1
    status: str = "done"
    error: str = ""


_NAMES = [column.name for column in fields(TrialRecord)]


def image_hash(image: Bytes) -> str:
    """Return the content hash of an image [h, w, 3]: 16 hex digits, the stem of its file name."""
    found = blake2b(repr(image.shape).encode(), digest_size=8)
    found.update(np.ascontiguousarray(image).data)
    return found.hexdigest()


def to_table(trials: Iterable[TrialRecord], metrics: Iterable[str] = ()) -> pa.Table:
    """Return the rows as a table; each metric of a row, and each of ``metrics``, is a column ``metric_<name>``."""
    import pyarrow as pa

    trials, wanted = list(trials), set(metrics)
    columns: dict[str, pa.Array] = {}
    for column in fields(TrialRecord):
        if column.name == "metrics":
            for name in sorted(wanted | {name for trial in trials for name in trial.metrics}):
                columns[f"metric_{name}"] = pa.array([t.metrics.get(name) for t in trials], pa.float64())
            continue
        values = [getattr(trial, column.name) for trial in trials]
        columns[column.name] = pa.array(values, _arrow_type(column.type))
    return pa.table(columns)


def _arrow_type(annotation: Any) -> pa.DataType:
    import pyarrow as pa

    types = {
        "str": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "Lineage": pa.list_(pa.string()),
        "tuple[str, ...]": pa.list_(pa.string()),
    }
    return types[str(annotation).removesuffix(" | None")]


def pack(trials: Iterable[TrialRecord], metrics: Iterable[str] = ()) -> bytes:
    """Return the rows as msgpack, in a tenth of the time of a table; :func:`unpack` returns them and ``metrics``."""
    rows = [[getattr(trial, name) for name in _NAMES] for trial in trials]
    packed: bytes = msgpack.packb([_NAMES, rows, list(metrics)], default=lambda value: value.item())
    return packed


def unpack(packed: bytes) -> tuple[list[TrialRecord], list[str]]:
    """Return the rows and metrics that :func:`pack` packed.

    Raises:
        ValueError: these are other bytes, or those of a version with other columns.
    """
    try:
        names, rows, metrics = msgpack.unpackb(packed)
        return [TrialRecord(**dict(zip(names, row, strict=True))) for row in rows], metrics
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(str(error)) from error


def write_parquet(table: pa.Table, path: Path | str, compression: str = "snappy") -> Path:
    """Write a table. A reader sees the old file or the complete new one, even after an interruption."""
    import pyarrow.parquet as pq

    path = Path(path)
    with replacing(path, sync=True) as temporary:
        pq.write_table(table, temporary, compression=compression)
    return path
