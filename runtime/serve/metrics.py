"""What /metrics says, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from pgsr.metric_names import IMAGES, WAITING

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)  # images
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one server."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        """`waiting`: how many images wait now."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "pgsr_requests", "Requests answered.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "pgsr_request_seconds",
            "Time from a request's headers to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.refused = Counter(
            "pgsr_refused", "Requests that were refused, by the reason.", ("reason",), registry=self.registry
        )
        self.gone = Counter(
            "pgsr_clients_gone", "Requests whose client went before the answer.", registry=self.registry
        )
        self.images = Counter(*IMAGES, registry=self.registry)
        self.batch = Histogram(
            "pgsr_batch_images", "Images of a batch.", buckets=BATCHES, registry=self.registry
        )
        self.computing = Counter(
            "pgsr_computing_seconds", "Time that the networks took.", registry=self.registry
        )
        self.open = Gauge("pgsr_requests_open", "Requests being answered.", registry=self.registry)
        Gauge(*WAITING, registry=self.registry).set_function(waiting)

    def observe_batch(self, images: int, seconds: float) -> None:
        """Counts a batch that was computed."""
        if images:
            self.images.inc(images)
            self.batch.observe(images)
            self.computing.inc(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
