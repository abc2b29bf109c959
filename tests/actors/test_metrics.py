"""What a study shows among Ray's metrics, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

import pytest
import ray

from lotts_search.actors.connection import connect
from lotts_search.actors.metrics import GAUGES, NFE, StudyMetrics
from lotts_search.study.watch import Snapshot

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"
LABELS = {"study": "first", "driver": "0"}
EXPORTED = {f"ray_{name}" for name in GAUGES} | {f"ray_{NFE}_total"}


def asked() -> set[str]:
    """Return the names in all queries of the dashboard."""
    text = DASHBOARD.read_text()
    board = json.loads(text)
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [one["query"] for one in board["templating"]["list"]]
    return {name for query in queries for name in re.findall(r"ray_\w+", query)}


def test_the_dashboard_asks_for_what_is_exported() -> None:
    assert asked() == EXPORTED
    board = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_a_snapshot_is_shown_and_steps_are_counted_once() -> None:
    assert {field for field, _ in GAUGES.values()} == {field.name for field in fields(Snapshot)} - {"at", "nfe"}
    shown: dict[str, float] = {}
    with (
        patch("ray.is_initialized", return_value=True),
        patch("ray.util.metrics.Gauge.set", lambda gauge, value, tags: shown.update({gauge.info["name"]: value})),
        patch(
            "ray.util.metrics.Counter.inc", lambda counter, value, tags: shown.update({NFE: shown.get(NFE, 0) + value})
        ),
    ):
        metrics = StudyMetrics(LABELS)
        metrics.update(Snapshot(1.0, 10, 4, 1, 100.0, 50.0, 3.0, 0.5, 0.25, 7))
        metrics.update(Snapshot(2.0, 10, 5, 1, 130.0, 20.0, 4.0, 0.75, 0.5, 9))
    assert shown == {
        "lotts_study_searches": 10, "lotts_study_searches_finished": 5, "lotts_study_searches_failed": 1, NFE: 130,
        "lotts_study_nfe_left": 20, "lotts_study_nfe_per_second": 4, "lotts_study_busy_share": 0.75,
        "lotts_study_batch_fill": 0.5, "lotts_study_work_waiting": 9,
    }  # fmt: skip


def test_without_ray_nothing_happens() -> None:
    with (
        patch("ray.is_initialized", return_value=False),
        patch("ray.util.metrics.Gauge.set", lambda *_: pytest.fail("a gauge was set")),
    ):
        StudyMetrics(LABELS).update(Snapshot(1.0))


@pytest.mark.slow
def test_prometheus_reads_these_names() -> None:
    """From the port that Ray's own configuration gives to Prometheus."""
    connection = connect("local", {"CPU": 1, "GPU": 0}, object_store_mb=100)
    try:
        metrics = StudyMetrics(LABELS)
        port = ray.nodes()[0]["MetricsExportPort"]  # type: ignore[no-untyped-call]
        found: set[str] = set()
        for number in range(120):
            metrics.update(Snapshot(1.0, 10, 4, 1, 1.0 + number, 50.0, 3.0, 0.5, 0.25, 7))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                found = set(re.findall(r"^(ray_lotts_\w+){", page.read().decode(), re.MULTILINE))
            if found >= EXPORTED:
                break
            time.sleep(0.5)
        assert found == EXPORTED
    finally:
        connection.close()
