"""The progress of a study among Ray's metrics, which its dashboard and Prometheus show."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray.util import metrics

from lotts_search.study.watch import Snapshot

GAUGES = {
    "lotts_study_searches": ("searches", "Searches of this run."),
    "lotts_study_searches_finished": ("finished", "Searches that have ended."),
    "lotts_study_searches_failed": ("failed", "Searches that failed."),
    "lotts_study_nfe_left": ("left", "Denoising steps that are planned and not done."),
    "lotts_study_nfe_per_second": ("rate", "Denoising steps a second of late."),
    "lotts_study_busy_share": ("busy", "Share of the time in which the generators compute, 0 to 1."),
    "lotts_study_batch_fill": ("fill", "Rows of requested work over the rows of all batches, 0 to 1."),
    "lotts_study_work_waiting": ("waiting", "Pieces of generating work that are requested and not done."),
}
"""Names of the gauges, the fields of a snapshot that they show, and what they are."""
NFE = "lotts_study_nfe"
"""Name of the counter of denoising steps. Prometheus knows all names with Ray's prefix ``ray_``, and this one with ``_total``."""


class StudyMetrics:
    """The metrics of one study.

    Args:
        labels: values of the labels ``study`` and ``driver``.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        names = ("study", "driver")
        self._labels = {name: labels[name] for name in names}
        self._gauges = {
            field: metrics.Gauge(name, description=said, tag_keys=names) for name, (field, said) in GAUGES.items()
        }
        self._nfe = metrics.Counter(NFE, description="Denoising steps of finished trials.", tag_keys=names)
        self._counted = 0.0

    def update(self, now: Snapshot) -> None:
        """Show a snapshot; without Ray, do nothing."""
        if not ray.is_initialized():
            return
        for field, gauge in self._gauges.items():
            gauge.set(float(getattr(now, field)), self._labels)
        if now.nfe > self._counted:
            self._nfe.inc(now.nfe - self._counted, self._labels)
            self._counted = now.nfe
