"""What `/metrics` shows, in a registry of its own (Prometheus)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from vitrail.serve import wire
from vitrail.serve.admission import Queue

__all__ = ["Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The server's counters; one event loop changes them."""

    def __init__(self, replica: str = "") -> None:
        self.registry = registry = CollectorRegistry()
        self._shown = registry if not replica else _Labelled(registry, replica)
        self._requests = Counter(
            "vitrail_requests", "Answered requests", ["model", "endpoint", "status"], registry=registry
        )
        self._seconds = Histogram(
            "vitrail_request_seconds",
            "From a request's last byte to its answer",
            ["model", "endpoint"],
            registry=registry,
            buckets=SECONDS,
        )
        self._stages = Histogram(
            "vitrail_stage_seconds",
            "Stages of a request in the model's process: wait, prepare, run, and of masks finish",
            ["model", "stage"],
            registry=registry,
            buckets=SECONDS,
        )
        self._rejected = Counter("vitrail_rejected", "Refused requests", ["code"], registry=registry)
        self._images = Counter("vitrail_images", "Images that were run", ["model"], registry=registry)
        self._batches = Histogram(
            "vitrail_batch_images", "Images of one run", ["model"], registry=registry, buckets=IMAGES
        )
        self._restarts = Counter(
            "vitrail_worker_restarts", "Processes started again", ["model", "reason"], registry=registry
        )
        self._ready = Gauge("vitrail_ready", "1: answers as recorded", ["model"], registry=registry)
        self._info = Gauge(
            "vitrail_model_info",
            "1 for the version in use",
            ["model", "version", "runtime"],
            registry=registry,
        )
        self._memory = Gauge(
            "vitrail_worker_resident_bytes", "Memory of a model's process", ["model"], registry=registry
        )
        self._largest = Gauge(
            "vitrail_batch_limit_images",
            "The largest batch that keeps the promise",
            ["model"],
            registry=registry,
        )
        self._shadow = Counter(
            "vitrail_shadow_images",
            "Images offered to a shadow: compared, skipped for its full queue, or failed",
            ["model", "outcome"],
            registry=registry,
        )
        self._agreement = Counter(
            "vitrail_shadow_agreement",
            "Of compared images: 1 for the same label, the cosine of vectors, or the mean IoU of masks",
            ["model"],
            registry=registry,
        )
        self._shadow_seconds = Histogram(
            "vitrail_shadow_seconds",
            "Time in the models' processes of the requests that both answered",
            ["model", "role"],
            registry=registry,
            buckets=SECONDS,
        )
        self._kept = Gauge(
            "vitrail_kept_photos",
            "Photos whose embeddings are kept for prompts",
            ["model"],
            registry=registry,
        )
        self._kept_bytes = Gauge(
            "vitrail_kept_bytes", "Memory of these embeddings", ["model"], registry=registry
        )
        self._queue_images = Gauge(
            "vitrail_queue_images", "Images accepted and not answered", ["model"], registry=registry
        )
        self._queue_pixels = Gauge("vitrail_queue_pixels", "Their pixels", ["model"], registry=registry)
        self.logs_dropped = Counter(
            "vitrail_access_log_dropped", "Lines that nobody read in time", registry=registry
        )

    def watch(self, model: str, queue: Queue) -> None:
        """Read a queue whenever somebody asks."""
        self._queue_images.labels(model).set_function(lambda: queue.images)
        self._queue_pixels.labels(model).set_function(lambda: queue.pixels)

    def answered(self, model: str, endpoint: str, status: int, seconds: float) -> None:
        """A request has its response."""
        self._requests.labels(model, endpoint, str(status)).inc()
        self._seconds.labels(model, endpoint).observe(seconds)

    def rejected(self, code: str) -> None:
        """A request was refused."""
        self._rejected.labels(code).inc()

    def stages(self, model: str, answer: wire.Answer) -> None:
        """Where a request's time went."""
        self._stages.labels(model, "wait").observe(answer.wait_s)
        self._stages.labels(model, "prepare").observe(answer.prepare_s)
        self._stages.labels(model, "run").observe(answer.run_s)
        if answer.finish_s:
            self._stages.labels(model, "finish").observe(answer.finish_s)

    def beat(self, model: str, beat: wire.Beat) -> None:
        """A process gave a sign of life."""
        for batch in beat.batches:
            self._batches.labels(model).observe(batch.images)
            self._images.labels(model).inc(batch.images)
        self._memory.labels(model).set(beat.resident_bytes)
        self._largest.labels(model).set(beat.most)
        if beat.kept is not None:
            self._kept.labels(model).set(beat.kept.photos)
            self._kept_bytes.labels(model).set(beat.kept.bytes)

    def shadowed(self, model: str, outcome: str, images: int) -> None:
        """A shadow compared, skipped or failed."""
        self._shadow.labels(model, outcome).inc(images)

    def agreed(self, model: str, agreement: float, live_s: float, shadow_s: float) -> None:
        """A request that both answered; the sum of its images' agreement."""
        self._agreement.labels(model).inc(max(agreement, 0.0))
        self._shadow_seconds.labels(model, "live").observe(live_s)
        self._shadow_seconds.labels(model, "shadow").observe(shadow_s)

    def restarted(self, model: str, reason: str) -> None:
        """A process takes the place of one that ended."""
        self._restarts.labels(model, reason).inc()

    def ready(self, model: str, ready: bool) -> None:
        """Readiness was read."""
        self._ready.labels(model).set(ready)

    def info(self, model: str, facts: wire.Ready) -> None:
        """A version took over."""
        for labels in [labels for labels in self._info._metrics if labels[0] == model]:
            self._info.remove(*labels)
        self._info.labels(model, facts.digest[:12], str(facts.about["runtime"])).set(1)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._shown)


class _Labelled(CollectorRegistry):
    """All of a registry's samples with one label more: which of several servers they are of."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        super().__init__()
        self._inner, self._replica = registry, replica

    def collect(self) -> Iterator[Metric]:
        """The registry's families."""
        for family in self._inner.collect():
            family.samples = [
                sample._replace(labels={**sample.labels, "replica": self._replica})
                for sample in family.samples
            ]
            yield family
