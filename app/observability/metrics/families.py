"""Every event that is counted or timed: names, labels, buckets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.samples import Exemplar, Sample

from app.observability.metrics.counts import Key
from app.observability.metrics.exposition import number

# A second series beside each counter and histogram, which nothing here asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

Family = TypeVar("Family", Counter, Gauge, Histogram)


class LabelledHistogram(Histogram):
    """The library's, but that the labels of its samples are made once, and not at each scrape: four of five series are
    those of histograms."""

    def _metric_init(self) -> None:
        super()._metric_init()
        own = dict(zip(self._labelnames, self._labelvalues, strict=True))
        self._own_labels = own
        self._labels_of_buckets = [own | {"le": number(bound)} for bound in self._upper_bounds]

    def _multi_samples(self) -> Iterator[Sample]:
        with self._lock:
            series = list(self._metrics.values())
        for each in series:
            yield from each._child_samples()  # noqa: SLF001 - of its own kind

    def _child_samples(self) -> Iterator[Sample]:
        total = 0.0
        for labels, bucket in zip(self._labels_of_buckets, self._buckets, strict=True):
            total += bucket.get()
            yield Sample("_bucket", labels, total, None, bucket.get_exemplar())
        yield Sample("_count", self._own_labels, total, None, None)
        yield Sample("_sum", self._own_labels, self._sum.get(), None, None)


class Series(dict[tuple[str, ...], Family], Generic[Family]):
    """The time series of a family by the values of their labels, made when they are first asked for. Looking one up
    here costs a tenth of `labels()`, which every request would pay several times.

    With `nowhere`, what has not been created is not made either: what is told of it, as of a request that ends after
    its model was unloaded, goes there.
    """

    def __init__(self, family: Family, nowhere: Family | None = None) -> None:
        super().__init__()
        self._family: Family = family
        self._nowhere: Family | None = nowhere

    def __missing__(self, labels: tuple[str, ...]) -> Family:
        if self._nowhere is not None:
            return self._nowhere
        series = self[labels] = self._family.labels(*labels)
        return series

    def create(self, *labels: str) -> None:
        """Have the series from now on, at zero."""
        self.setdefault(labels, self._family.labels(*labels))

    def forget(self, first: str) -> None:
        """Have no series any more whose first label is that."""
        for labels in [labels for labels in self if labels[0] == first]:
            del self[labels]
            self._family.remove(*labels)


class Families:
    """Of one application. Gauges that are read from the runtime at each scrape are in gauges.py."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._of_models: list[Series[Any]] = []
        self._counted: dict[str, Series[Any]] = {}
        request = ("route", "method", "code")
        self.requests = self._counter("gradless_requests_total", "Requests by outcome.", *request)
        # By the class of the status, 2xx: by the status itself there would be twice as many series in all.
        self.request_seconds = self._histogram(
            "gradless_request_duration_seconds", "Time from a request's first byte to its answer's last.", *request
        )
        self.images = self._counter(
            "gradless_images_total",
            "Images, each once, by what became of them: those read whole, and those refused unread.",
            "model",
            "task",
            "outcome",
        )
        self.stage_seconds = self._histogram(
            "gradless_stage_duration_seconds",
            "Time in a stage: read and respond by request, the others by image.",
            "model",
            "stage",
        )
        self.batch_size = self._histogram("gradless_batch_size", "Images in a forward.", "model", buckets=_SIZES)
        self.batches = self._counter("gradless_batches_total", "Batches by what let them go.", "model", "trigger")
        self.busy_seconds = self._counter(
            "gradless_forward_busy_seconds_total", "Time in which a forward was under way.", "model"
        )
        self.out_of_memory = self._counter(
            "gradless_out_of_memory_total", "Forwards that the device had no memory for.", "model"
        )
        self.splits = self._counter("gradless_batch_splits_total", "Batches halved for want of memory.", "model")
        self.worker_replacements = self._counter(
            "gradless_worker_replacements_total",
            "HTTP workers that were replaced because they had ended or were unresponsive.",
            "reason",
        )
        self.stale_messages = self._counter(
            "gradless_stale_messages_total",
            "Messages between processes that were dropped, because their image was not there any more.",
            "message",
        )
        self.log_lines_dropped = self._counter(
            "gradless_log_lines_dropped_total",
            "Lines of the log that were dropped: the queue to the writer was full, or the write failed.",
            "reason",
        )
        self.replacements = self._counter(
            "gradless_model_replacements_total", "Models started anew because they stopped.", "model"
        )
        self.loads = self._counter(
            "gradless_model_loads_total",
            "Loads of models and of new versions of them, by what became of them.",
            "model",
            "outcome",
        )
        self.cancelled = self._counter(
            "gradless_cancelled_total",
            "Images given up, by their caller or their deadline, by the stage they were in.",
            "model",
            "stage",
        )
        self.saved_seconds = self._counter(
            "gradless_saved_device_seconds_total",
            "Time that forwards would have taken for images given up before theirs began.",
            "model",
        )
        self.rejected = self._counter("gradless_rejected_total", "Refusals of requests and images.", "reason")
        self.arm_seconds = self._gauge(
            "gradless_forward_seconds", "Median forward in the last comparison, by its arm.", "model", "mode"
        )
        self.arm_peak = self._gauge(
            "gradless_forward_peak_bytes",
            "Bytes a forward had allocated at most in the last comparison, by its arm.",
            "model",
            "mode",
        )
        self.arm_retained = self._gauge(
            "gradless_forward_retained_bytes",
            "Bytes a forward kept for a backward pass in the last comparison, by its arm.",
            "model",
            "mode",
        )

    def forget(self, model: str) -> None:
        """Have no series of a model any more."""
        for series in self._of_models:
            series.forget(model)

    def add(self, key: Key, amount: float, exemplar: Exemplar | None) -> None:
        """Add to a counter or a part of a histogram what another process has counted."""
        bucket = key.sample.endswith("_bucket")
        series = self._counted[key.name][key.labels[:-1] if bucket else key.labels]
        if bucket:
            value = series._buckets[series._upper_bounds.index(float(key.labels[-1]))]  # noqa: SLF001 - of its own kind
        else:
            value = series._value if key.sample.endswith("_total") else series._sum  # noqa: SLF001 - as above
        value.inc(amount)
        if exemplar is not None:
            value.set_exemplar(exemplar)

    def _counter(self, name: str, help_text: str, *labels: str) -> Series[Counter]:
        return self._series(Counter, name, help_text, labels)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Series[Gauge]:
        return self._series(Gauge, name, help_text, labels)

    def _histogram(
        self, name: str, help_text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
    ) -> Series[Histogram]:
        return self._series(LabelledHistogram, name, help_text, labels, buckets=buckets)

    def _series(
        self, kind: type[Family], name: str, help_text: str, labels: tuple[str, ...], **options: Any
    ) -> Series[Family]:
        family = kind(name, help_text, labels, registry=self._registry, **options)
        series = Series(family)
        if labels[0] == "model":
            series = Series(family, kind(name, help_text, registry=None, **options))
            self._of_models.append(series)
        self._counted[family._name] = series  # noqa: SLF001 - as its values are told of
        return series
