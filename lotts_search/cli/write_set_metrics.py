"""The work of ``lotts-search set-metrics``."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.progress import track
from rich.table import Table

from lotts_search.cli.console import Console
from lotts_search.curves.intervals import Interval
from lotts_search.report.page import write_csv
from lotts_search.set_metrics.of_study import SetMetrics, set_metrics

INTERVALS = ("kid", "cmmd", "diversity")


def run(folder: Path, features: str, reference: Path | None, out: Path, json: bool) -> None:
    """Compute the metrics, write them as CSV and print them.

    Raises:
        BadInput, Failure: as :func:`~lotts_search.set_metrics.of_study.set_metrics`.
    """
    console = Console(stderr=True)

    def watch(files: Sequence[Path]) -> Iterable[Path]:
        return track(files, "images", console=console, transient=True)

    metrics = set_metrics(folder, features, reference, watch)
    rows = [_plain(one) for one in metrics]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(out, list(rows[0]), [list(row.values()) for row in rows])
    if json:
        print(json_module.dumps({"table": str(out), "features": features, "sets": rows}))
        return
    _show(metrics, features)
    console.print(f"table: {out}", soft_wrap=True)


def _plain(one: SetMetrics) -> dict[str, object]:
    row: dict[str, object] = {
        "model": one.setup.model, "label": one.setup.label, "budget_nfe": one.setup.nfe, "budget_images": one.setup.images,
        "budget_flops": one.setup.flops,
        "images": one.images, "prompts": one.prompts, "frechet": one.frechet,
    }  # fmt: skip
    for name in INTERVALS:
        found: Interval | None = getattr(one, name)
        ends = (None,) * 3 if found is None else (found.mean, found.low, found.high)
        row |= {
            f"{name}{end}": None if value is None or math.isnan(value) else value
            for end, value in zip(("", "_low", "_high"), ends, strict=True)
        }
    return row


def _show(metrics: Sequence[SetMetrics], features: str) -> None:
    shown = [name for name in ("frechet", *INTERVALS) if any(getattr(one, name) is not None for one in metrics)]
    titles = {"frechet": f"Fréchet distance on {features.partition(':')[0]}", "kid": "KID", "cmmd": "CMMD"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "strategy", "budget", "images", "prompts", *(titles.get(name, name) for name in shown)):
        table.add_column(title, justify="left" if title in ("model", "strategy", "budget") else "right")
    for one in metrics:
        values = (_value(getattr(one, name)) for name in shown)
        table.add_row(one.setup.model, one.setup.label, one.setup.budget, str(one.images), str(one.prompts), *values)
    Console().print(table)


def _value(value: float | Interval | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    ends = "" if math.isnan(value.low) else f" [{value.low:.4g}, {value.high:.4g}]"
    return f"{value.mean:.4g}{ends}"
