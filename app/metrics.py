"""The only importer of prometheus_client: what is counted, under which names, and the exposition.

Label values come from the settings, the routes and closed lists, never from a request: the number of time series
is bounded by the configuration. Those of models and refusals exist from the start, so that rate() works from the first
event on.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.problems import Reason
from app.runtime import Runtime
from models.comparison import Comparison, Mode
from models.telemetry import BatchReport, Outcome, Stage, StageSeconds, Task, Trigger

# A second series beside each counter and histogram, which nothing here asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_STAGES = ("read", "respond")
# Whatever is no route of the API: its documentation, and paths that are nothing.
_OTHER = "other"


class Metrics:
    """The telemetry sink of one application, with a registry of its own. Thread-safe."""

    def __init__(self, models: Sequence[str]) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "gradless_requests_total", "Requests by outcome.", ["route", "method", "code"], registry=registry
        )
        self._request_seconds = Histogram(
            "gradless_request_duration_seconds",
            "Time from a request's first byte to its answer's last.",
            ["route", "method", "code"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter(
            "gradless_images_total",
            "Images sent, each once, by what became of them.",
            ["model", "task", "outcome"],
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "gradless_stage_duration_seconds",
            "Time in a stage: read and respond by request, the others by image.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_size = Histogram(
            "gradless_batch_size", "Images in a forward.", ["model"], buckets=_SIZES, registry=registry
        )
        self._batches = Counter(
            "gradless_batches_total", "Batches by what let them go.", ["model", "trigger"], registry=registry
        )
        self._cancelled = Counter(
            "gradless_cancelled_total",
            "Images given up, by their caller or their deadline, by the stage they were in.",
            ["model", "stage"],
            registry=registry,
        )
        self._rejected = Counter(
            "gradless_rejected_total", "Refusals of requests and images.", ["reason"], registry=registry
        )
        self._mode_seconds = Gauge(
            "gradless_forward_seconds",
            "Median forward of the last comparison.",
            ["model", "mode"],
            registry=registry,
        )
        self._mode_retained = Gauge(
            "gradless_forward_retained_bytes",
            "Bytes a forward kept for a backward pass in the last comparison.",
            ["model", "mode"],
            registry=registry,
        )
        self._create_series(models)

    def watch(self, runtime: Runtime) -> None:
        """Read the gauges of `runtime` at each scrape from now on."""
        self._registry.register(_RuntimeCollector(runtime))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as (body, content type): OpenMetrics where `accept` asks for it, else Prometheus text."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):
            # A version that is no number.
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def request_done(self, route: str | None, method: str, status: int, seconds: float) -> None:
        labels = (route or _OTHER, method if method in _METHODS else "other", str(status))
        self._requests.labels(*labels).inc()
        self._request_seconds.labels(*labels).observe(seconds)

    def request_stages(self, model: str, read_seconds: float, respond_seconds: float) -> None:
        self._stage_seconds.labels(model, "read").observe(read_seconds)
        self._stage_seconds.labels(model, "respond").observe(respond_seconds)

    def rejected(self, reason: Reason) -> None:
        self._rejected.labels(reason).inc()

    def batch_ran(self, report: BatchReport) -> None:
        self._batch_size.labels(report.model).observe(report.size)
        self._batches.labels(report.model, report.trigger).inc()

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:
        self._images.labels(model, task, outcome).inc(count)

    def image_took(self, model: str, seconds: StageSeconds) -> None:
        self._stage_seconds.labels(model, "decode").observe(seconds.decode)
        self._stage_seconds.labels(model, "queue").observe(seconds.queue)
        self._stage_seconds.labels(model, "forward").observe(seconds.forward)

    def image_cancelled(self, model: str, stage: Stage) -> None:
        self._cancelled.labels(model, stage).inc()

    def compared(self, comparison: Comparison) -> None:
        for report in comparison.modes:
            self._mode_seconds.labels(comparison.model, report.mode).set(report.median_seconds)
            self._mode_retained.labels(comparison.model, report.mode).set(report.retained.bytes)

    def _create_series(self, models: Sequence[str]) -> None:
        for reason in get_args(Reason):
            self._rejected.labels(reason)
        for model in models:
            self._batch_size.labels(model)
            for trigger in get_args(Trigger):
                self._batches.labels(model, trigger)
            for stage in get_args(Stage):
                self._stage_seconds.labels(model, stage)
                self._cancelled.labels(model, stage)
            for stage in _REQUEST_STAGES:
                self._stage_seconds.labels(model, stage)
            for task in get_args(Task):
                for outcome in get_args(Outcome):
                    self._images.labels(model, task, outcome)
            for mode in get_args(Mode):
                self._mode_seconds.labels(model, mode).set(float("nan"))
                self._mode_retained.labels(model, mode).set(float("nan"))


class _RuntimeCollector(Collector):
    """Gauges that are read when asked for, not kept up to date in between."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterable[Metric]:
        yield from self._queues()
        yield from self._models()
        memory = GaugeMetricFamily(
            "gradless_device_memory_bytes",
            "Memory of the device; on the CPU, of process and system.",
            labels=["device", "kind"],
        )
        device = next(iter(self._runtime.cards.values())).device
        for kind, size in self._runtime.memory_bytes().items():
            memory.add_metric([device, kind], size)
        yield memory
        build = GaugeMetricFamily(
            "gradless_build_info", "Always 1.", labels=["version", "python", "torch", "torchvision", "device"]
        )
        versions = [version("gradless"), platform.python_version(), version("torch"), version("torchvision")]
        build.add_metric([*versions, device], 1)
        yield build

    def _queues(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("gradless_queue_depth", "Images waiting for a batch.", labels=["model"])
        age = GaugeMetricFamily(
            "gradless_queue_oldest_age_seconds", "How long the first of them has waited.", labels=["model"]
        )
        in_flight = GaugeMetricFamily(
            "gradless_in_flight_images", "Images admitted and not yet answered.", labels=["model"]
        )
        for name, state in self._runtime.queues().items():
            depth.add_metric([name], state.depth)
            age.add_metric([name], state.oldest_age_seconds)
            in_flight.add_metric([name], state.in_flight)
        yield from (depth, age, in_flight)

    def _models(self) -> Iterator[Metric]:
        labels = ["model", "device", "dtype", "backend"]
        ready = GaugeMetricFamily("gradless_model_ready", "1 when requests are answered.", labels=labels)
        load = GaugeMetricFamily("gradless_model_load_seconds", "Time the model took to load.", labels=labels)
        weights = GaugeMetricFamily(
            "gradless_model_weights_bytes", "Bytes of its parameters and buffers.", labels=labels
        )
        is_ready = float(self._runtime.ready)
        for card in self._runtime.cards.values():
            values = [card.name, card.device, card.dtype, card.backend]
            ready.add_metric(values, is_ready)
            load.add_metric(values, card.load_seconds)
            weights.add_metric(values, card.weight_bytes)
        yield from (ready, load, weights)
