"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lotts_search.core.recipe import Recipe
from lotts_search.core.result import SearchResult

if TYPE_CHECKING:
    from lotts_search.serve.service import Service

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class _Now(Collector):
    """What is so at the moment of reading."""

    def __init__(self, service: Service):
        self._service = service

    def collect(self) -> Iterable[GaugeMetricFamily]:
        yield GaugeMetricFamily("lotts_searches_running", "Searches that are running.", self._service.running)
        waiting = GaugeMetricFamily(
            "lotts_work_waiting", "Pieces of work that wait for room in a pool.", labels=["model"]
        )
        running = GaugeMetricFamily("lotts_rows_running", "Rows that a pool works on.", labels=["model"])
        for name, served in self._service.served.items():
            waiting.add_metric([name], served.fair.waiting)
            running.add_metric([name], served.fair.running)
        yield waiting
        yield running


class Metrics:
    """The metrics of a server."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        self.registry.register(_Now(service))
        labels = ("model", "strategy", "key")
        self.requests = Counter("lotts_requests", "Answered requests.", ("path", "status"), registry=self.registry)
        self.seconds = Histogram(
            "lotts_request_seconds", "Duration of requests.", ("path",), buckets=SECONDS, registry=self.registry
        )
        self.first = Histogram(
            "lotts_first_image_seconds", "Time to the first image of a stream.", buckets=SECONDS, registry=self.registry
        )
        self._searches = Counter("lotts_searches", "Searches that ended.", (*labels, "status"), registry=self.registry)
        self._nfe = Counter("lotts_nfe", "Denoising steps.", labels, registry=self.registry)
        self._wasted = Counter(
            "lotts_nfe_wasted", "Denoising steps lost with an actor.", labels, registry=self.registry
        )
        self._images = Counter("lotts_images", "Complete images.", labels, registry=self.registry)

    def spent(self, key: str, recipe: Recipe, results: Sequence[SearchResult]) -> None:
        """Count what the searches of a request used."""
        labels = recipe.model, recipe.strategy, key
        for result in results:
            self._searches.labels(*labels, result.status).inc()
            self._nfe.labels(*labels).inc(result.ledger.nfe)
            self._wasted.labels(*labels).inc(result.ledger.nfe_wasted)
            self._images.labels(*labels).inc(result.ledger.images)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)
