"""The server's metrics in Prometheus' format."""

from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Metrics in Prometheus' format."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = {"registry": self.registry, "namespace": "detection"}
        self.requests = Counter("requests", "Requests to /predict by status code", ["code"], **names)
        self.images = Counter("images", "Images that the detector ran on", **names)
        self.seconds = Histogram("request_seconds", "Time until the answer of /predict", **names)
        self.batch = Histogram("batch_images", "Images per batch", buckets=(1, 2, 4, 8, 16, 32, 64), **names)
        self.batch_seconds = Histogram("batch_seconds", "Time of the detector per batch", **names)
        self.waiting = Gauge("waiting_images", "Images that wait for the detector", **names)
        self.reloads = Counter("reloads", "Times that another detector was loaded", **names)

    def exposition(self) -> Response:
        """Answer of /metrics."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def on_status(self, code: int) -> None:
        """Count an answer of /predict."""
        self.requests.labels(str(code)).inc()

    def on_batch(self, count: int, seconds: float) -> None:
        """Count a batch."""
        self.images.inc(count)
        self.batch.observe(count)
        self.batch_seconds.observe(seconds)
