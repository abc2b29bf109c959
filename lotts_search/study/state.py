"""The state of a study: which searches are finished, started, failed or new; and its ``study.json``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lotts_search import __version__
from lotts_search.core.failures import Failures
from lotts_search.errors import BadInput, LostWork
from lotts_search.fingerprint import FORMAT
from lotts_search.study.folder import RunFolder
from lotts_search.study.metrics import COMPLETE, columns_of
from lotts_search.study.searches import Task, limits_on, unchecked
from lotts_search.study.spec import Limit, ModelEntry, StrategyEntry, Study
from lotts_search.work.batch_sizes import BatchSizes
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Sampling

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class Standing:
    """The searches of a study by state.

    Attributes:
        done: finished before; nothing to do.
        failed: finished without an image, or with trials that were lost with their workers; to be retried.
        begun: unfinished, with a journal.
        new: not started.
        aside: number of finished searches in the folder that the study no longer contains.
        lacking: columns of the study's metrics that are missing on finished searches.
        rate: NFE per second of device time in the finished rows, by model label.
    """

    done: list[Task] = field(default_factory=list)
    failed: list[Task] = field(default_factory=list)
    begun: list[Task] = field(default_factory=list)
    new: list[Task] = field(default_factory=list)
    aside: int = 0
    lacking: list[str] = field(default_factory=list)
    rate: dict[str, float] = field(default_factory=dict)

    @property
    def todo(self) -> list[Task]:
        """Return all searches that are to be run, in the order of the study."""
        return sorted([*self.failed, *self.begun, *self.new], key=lambda task: task.number)

    def __str__(self) -> str:
        parts = [
            (self.done, "reused"),
            (self.begun, "to resume"),
            (self.failed, "to retry"),
            (self.new, "new"),
        ]
        said = [f"{len(tasks)} {what}" for tasks, what in parts if tasks]
        said += [f"{self.aside} set aside"] if self.aside else []
        return ", ".join(said)


def standing(
    folder: RunFolder, tasks: Sequence[Task], metrics: Sequence[str] = (), failed: Collection[str] = ()
) -> Standing:
    """Return the state of these searches in a folder.

    Args:
        metrics: of the study.
        failed: ids of searches that failed before, elsewhere.

    Raises:
        BadInput: the folder was begun by a version whose searches have other ids.
    """
    if folder.study().get("format", FORMAT) != FORMAT:
        raise BadInput(
            f"{folder.path} was begun by a version of lotts-search whose searches have other ids: finish it with that "
            "version, or choose another --out"
        )
    found = Standing()
    rows = folder.rows()
    summaries = {} if rows is None else summaries_of(rows)
    failed_before = {s["search_id"] for s in folder.study().get("searches", ()) if s.get("status") == "failed"}
    begun = folder.begun()
    for task in tasks:
        known = summaries.get(task.search_id)
        if known is not None and known["score"] is not None and not known["lost"]:
            found.done.append(task)
        elif known is not None or task.search_id in failed_before or task.search_id in failed:
            found.failed.append(task)
        elif task.search_id in begun:
            found.begun.append(task)
        else:
            found.new.append(task)
    found.aside = len(summaries.keys() - {task.search_id for task in tasks})
    if rows is not None:
        found.rate = _rates(rows)
        if found.done:
            found.lacking = [
                c for c in columns_of(metrics) if _lacks(rows, f"metric_{c}", {t.search_id for t in found.done})
            ]
    return found


def summaries_of(rows: pa.Table) -> dict[str, dict[str, Any]]:
    """Return score (None without an image), nfe, images, device_s, seconds, failed trials, first error, whether trials were
    lost with their workers, and metrics of each search.

    The metrics are those of the image that it returned.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ran = pc.greater(rows["started"], 0)
    started = pc.if_else(ran, rows["started"], pa.scalar(None, pa.float64()))
    table = pa.table(
        {name: rows[name] for name in ("search_id", "nfe", "images", "device_s", "best_so_far", "finished")}
    )
    error = pc.if_else(pc.equal(rows["status"], "failed"), rows["error"], pa.scalar(None, pa.string()))
    lost = pc.fill_null(pc.match_substring(error, LostWork.MARK), False)
    table = table.append_column("started", started).append_column("error", error).append_column("lost", lost)
    totals = table.group_by("search_id", use_threads=False).aggregate(  # threads have no first row
        [("nfe", "sum"), ("images", "sum"), ("device_s", "sum"), ("best_so_far", "max"), ("started", "min"),
         ("finished", "max"), ("error", "first"), ("error", "count"), ("lost", "any")]
    )  # fmt: skip
    metrics = _metrics_of_best(rows)
    found: dict[str, dict[str, Any]] = {}
    for row in totals.to_pylist():
        seconds = row["finished_max"] - row["started_min"] if row["started_min"] is not None else 0.0
        found[row["search_id"]] = {
            "score": row["best_so_far_max"], "nfe": row["nfe_sum"], "images": row["images_sum"],
            "device_s": row["device_s_sum"], "seconds": seconds, "error": row["error_first"] or "",
            "failed_trials": row["error_count"], "lost": row["lost_any"],
            "metrics": metrics.get(row["search_id"], {}),
        }  # fmt: skip
    return found


def _metrics_of_best(rows: pa.Table) -> dict[str, dict[str, float]]:
    """Return the metrics of the image that each search returned: the first of those with its best score."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [name for name in rows.column_names if name.startswith("metric_")]
    complete = pc.and_(pc.is_in(rows["kind"], pa.array(COMPLETE)), pc.is_valid(rows["image"]))
    made = rows.filter(pc.and_(complete, pc.is_valid(rows["score"])))
    ranked = made.select(["search_id", "score", *columns]).sort_by([("score", "descending")])  # a stable sort
    whole = pc.ScalarAggregateOptions(skip_nulls=False)
    best = ranked.group_by("search_id", use_threads=False).aggregate([(name, "first", whole) for name in columns])
    return {
        row["search_id"]: {
            name.removeprefix("metric_"): row[f"{name}_first"] for name in columns if row[f"{name}_first"] is not None
        }
        for row in best.to_pylist()
    }


def _rates(rows: pa.Table) -> dict[str, float]:
    totals = rows.group_by("model").aggregate([("nfe", "sum"), ("device_s", "sum")]).to_pylist()
    return {row["model"]: row["nfe_sum"] / row["device_s_sum"] for row in totals if row["device_s_sum"] > 0}


def _lacks(rows: pa.Table, column: str, ids: set[str]) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    if column not in rows.column_names:
        return True
    mine = rows.filter(pc.is_in(rows["search_id"], pa.array(list(ids))))
    judged = mine.group_by("search_id").aggregate([(column, "count")])
    return bool(pc.any(pc.equal(judged[f"{column}_count"], 0)).as_py())


def describe(
    study: Study,
    tasks: Sequence[Task],
    rows: pa.Table | None,
    *,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    errors: Mapping[str, str],
    infos: Mapping[str, ModelInfo],
) -> dict[str, Any]:
    """Return ``study.json``: ``before`` is its old content, ``now`` has command, status, times and machine."""
    summaries = {} if rows is None else summaries_of(rows)
    known_models = {model["label"]: model for model in before.get("models", ())}
    return {
        "format": FORMAT,
        "name": study.name,
        "version": __version__,
        **now,
        "metrics": columns_of(study.metrics),
        "baselines": list(study.baselines),
        "models": [_model(model, infos.get(model.label), known_models.get(model.label, {})) for model in study.models],
        "strategies": [_strategy(study, entry) for entry in study.strategies],
        "budgets": [_limit(limit) for limit in study.limits],
        "seconds_limit": study.seconds,
        "seeds": list(study.seeds),
        "prompts": dict(study.source),
        "workers": study.workers,
        "rewriters": study.rewriters,
        "images": study.keep,
        "unchecked": unchecked(study),
        "failed_trials": asdict(Failures.of_table(rows)),
        "searches": [_search(task, summaries.get(task.search_id), errors.get(task.search_id, "")) for task in tasks],
    }


def machine(generators: int, batch: BatchSizes, device: str) -> dict[str, Any]:
    """Return a description of the machine that runs the study."""
    return {
        "host": platform.node(),
        "cpus": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "generators": generators,
        "batch": batch.batch,
        "device": device,
    }


def _model(model: ModelEntry, info: ModelInfo | None, before: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "label": model.label, "model": model.model, "options": dict(model.options), "as": model.priced_as,
        "verifier": model.verifier,
    }  # fmt: skip
    if info is None:
        names = ("steps", "guidance", "eta", "solver", "negative", "sample_nfe", "prices", "family")
        return found | {name: before.get(name) for name in names} | dict(model.sampling)
    sampling = Sampling.of(info, "", **model.sampling)
    return found | {
        "steps": sampling.steps, "guidance": sampling.guidance, "eta": sampling.eta, "solver": sampling.solver,
        "negative": sampling.negative, "sample_nfe": float(sampling.steps), "prices": asdict(info.prices),
        "family": info.family,
    }  # fmt: skip


def _strategy(study: Study, entry: StrategyEntry) -> dict[str, Any]:
    """Describe a strategy. Budgets in samples are in NFE, each with its model."""
    budgets = [_limit(limit) for limit in entry.limits if limit.samples is None]
    if len(budgets) < len(entry.limits):
        budgets = [_limit(limit) | {"model": m.label} for m in study.models for limit in limits_on(entry, m)]
    return {
        "label": entry.label, "strategy": entry.name, "settings": json.loads(entry.arguments), "nested": entry.nested,
        "budgets": budgets,
    }  # fmt: skip


def _limit(limit: Limit) -> dict[str, Any]:
    samples = {} if limit.samples is None else {"samples": limit.samples}
    return {"nfe": limit.nfe, "images": limit.images, "flops": limit.flops} | samples


def _search(task: Task, summary: Mapping[str, Any] | None, error: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "search_id": task.search_id, "model": task.model.label, "label": task.entry.label,
        "prompt_id": task.prompt.id, "seed": task.seed, "search_seed": task.search_seed,
        "budget_nfe": task.limit.nfe, "budget_images": task.limit.images, "budget_flops": task.limit.flops,
    }  # fmt: skip
    if summary is None:
        nothing: dict[str, Any] = dict.fromkeys(("score", "nfe", "images", "device_s", "seconds", "failed_trials"))
        return found | {"status": "failed" if error else "open", "error": error, "metrics": {}} | nothing
    about = dict(summary)
    status = "failed" if about.pop("lost") or error or about["score"] is None else "done"
    return found | about | {"status": status, "error": error or (about["error"] if status == "failed" else "")}
