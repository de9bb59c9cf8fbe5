"""Declare every counter, histogram and stored gauge: name, help text, labels, and the values of each label.

Gauges that are read from the runtime at each scrape are in collectors.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Final, Generic, Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.samples import Exemplar

from app.http.problems import Reason
from app.observability.metrics.counts import Key
from app.process.log_writer import DropReason
from gradless.records import ARMS
from models.interface.telemetry import Outcome, Stage, StaleMessage, Task, Trigger

# Without it each counter and histogram has a second series, the time of its creation.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

# Whether a request whose images reached a model was answered without an error.
Answered = Literal["ok", "failed"]

# Why an HTTP worker was replaced.
WorkerEnd = Literal["ended", "unresponsive"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# Values of labels that are known only at run time: names of models, their devices, and routes, methods and statuses.
_MODELS: Final = None
_DEVICES: Final = None
_AT_RUN_TIME: Final = None

# The device of stages that no model instance does. Prometheus takes an empty label for a missing one.
NO_DEVICE: Final = ""

_STAGES_OF_INSTANCES = ("queue", "forward")
_OTHER_STAGES = ("read", "decode", "respond")

Family = TypeVar("Family", Counter, Gauge, Histogram)


class Series(dict[tuple[str, ...], Family], Generic[Family]):
    """The time series of a family by label values, created at first use.

    A lookup here costs a tenth of `labels()`, which each request would call several times. With `discarded`, unknown
    label values do not create a series; their samples go to `discarded`. This happens when a request ends after its
    model was unloaded.
    """

    def __init__(self, family: Family, discarded: Family | None = None) -> None:
        super().__init__()
        self._family: Family = family
        self._discarded: Family | None = discarded

    def __missing__(self, labels: tuple[str, ...]) -> Family:
        if self._discarded is not None:
            return self._discarded
        series = self[labels] = self._family.labels(*labels)
        return series

    def create(self, *labels: str) -> None:
        """Create the series, at zero, unless it exists."""
        self.setdefault(labels, self._family.labels(*labels))

    def remove(self, first: str) -> None:
        """Remove all series whose first label has that value."""
        for labels in [labels for labels in self if labels[0] == first]:
            del self[labels]
            self._family.remove(*labels)


class Families:
    """All metric families of one application.

    Series whose label values are all listed here exist from the start; those of a model from `add_model` to
    `remove_model`. So `rate()` sees the first event of each.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._by_name: dict[str, Series[Any]] = {}
        # With the values of the labels after `model`, or after `model` and `device`.
        self._per_model: list[tuple[Series[Any], Sequence[Sequence[str]]]] = []
        self._per_instance: list[tuple[Series[Any], Sequence[Sequence[str]]]] = []
        self.requests = self._series(
            Counter,
            "gradless_requests_total",
            "HTTP requests by route, method, status and protocol.",
            route=_AT_RUN_TIME,
            method=_AT_RUN_TIME,
            code=_AT_RUN_TIME,
            contract=_AT_RUN_TIME,
        )
        # By class of status, 2xx: a histogram per status would double the number of series.
        self.request_seconds = self._series(
            Histogram,
            "gradless_request_duration_seconds",
            "Time from a request's first byte to the last byte of its response.",
            _SECONDS,
            route=_AT_RUN_TIME,
            method=_AT_RUN_TIME,
            code=_AT_RUN_TIME,
            contract=_AT_RUN_TIME,
        )
        self.model_requests = self._series(
            Counter,
            "gradless_model_requests_total",
            "Requests whose images reached a model, by whether they were answered.",
            model=_MODELS,
            outcome=get_args(Answered),
        )
        self.model_request_seconds = self._series(
            Counter,
            "gradless_model_request_seconds_total",
            "Time of the requests whose images reached a model.",
            model=_MODELS,
            outcome=get_args(Answered),
        )
        self.images = self._series(
            Counter,
            "gradless_images_total",
            "Images by outcome, each counted once: those received completely, and those refused at their headers.",
            model=_MODELS,
            task=get_args(Task),
            outcome=get_args(Outcome),
        )
        self.stage_seconds = self._series(
            Histogram,
            "gradless_stage_duration_seconds",
            "Time in each stage: read and respond per request, the other stages per image. queue and forward have a "
            "device.",
            _SECONDS,
            model=_MODELS,
            device=_DEVICES,
            stage=_STAGES_OF_INSTANCES,
        )
        self.batch_size = self._series(
            Histogram, "gradless_batch_size", "Images per forward.", _SIZES, model=_MODELS, device=_DEVICES
        )
        self.batches = self._series(
            Counter,
            "gradless_batches_total",
            "Batches by what started them.",
            model=_MODELS,
            device=_DEVICES,
            trigger=get_args(Trigger),
        )
        self.last_batch = self._series(
            Gauge, "gradless_last_batch_timestamp_seconds", "Unix time of a model's last batch; 0: none.", model=_MODELS
        )
        self.busy_seconds = self._series(
            Counter,
            "gradless_forward_busy_seconds_total",
            "Time during which a forward was running.",
            model=_MODELS,
            device=_DEVICES,
        )
        self.out_of_memory = self._series(
            Counter,
            "gradless_out_of_memory_total",
            "Forwards that ran out of device memory.",
            model=_MODELS,
            device=_DEVICES,
        )
        self.splits = self._series(
            Counter,
            "gradless_batch_splits_total",
            "Batches split in two after running out of memory.",
            model=_MODELS,
            device=_DEVICES,
        )
        self.worker_replacements = self._series(
            Counter,
            "gradless_worker_replacements_total",
            "HTTP workers that were replaced because they had ended or were unresponsive.",
            reason=get_args(WorkerEnd),
        )
        self.stale_messages = self._series(
            Counter,
            "gradless_stale_messages_total",
            "Messages between processes dropped because their image no longer existed.",
            message=get_args(StaleMessage),
        )
        self.log_lines_dropped = self._series(
            Counter,
            "gradless_log_lines_dropped_total",
            "Log lines dropped because the queue to the writer was full or the write failed.",
            reason=get_args(DropReason),
        )
        self.replacements = self._series(
            Counter,
            "gradless_model_replacements_total",
            "Models restarted because they stopped working.",
            model=_MODELS,
        )
        self.loads = self._series(
            Counter,
            "gradless_model_loads_total",
            "Loads of models and of new versions of them, by outcome.",
            model=_MODELS,
            outcome=("ok", "failed"),
        )
        self.cancelled = self._series(
            Counter,
            "gradless_cancelled_total",
            "Images cancelled by a disconnect or their deadline, by the stage they were in.",
            model=_MODELS,
            stage=get_args(Stage),
        )
        self.saved_seconds = self._series(
            Counter,
            "gradless_saved_device_seconds_total",
            "Forward time saved by images cancelled before their forward began.",
            model=_MODELS,
        )
        self.rejected = self._series(
            Counter, "gradless_rejected_total", "Refusals of requests and images, by reason.", reason=get_args(Reason)
        )
        self.arm_seconds = self._series(
            Gauge,
            "gradless_forward_seconds",
            "Median forward time in the last comparison, by arm.",
            model=_MODELS,
            device=_DEVICES,
            mode=ARMS,
        )
        self.arm_peak = self._series(
            Gauge,
            "gradless_forward_peak_bytes",
            "Peak bytes allocated by a forward in the last comparison, by arm.",
            model=_MODELS,
            device=_DEVICES,
            mode=ARMS,
        )
        self.arm_retained = self._series(
            Gauge,
            "gradless_forward_retained_bytes",
            "Bytes that a forward kept for a backward pass in the last comparison, by arm.",
            model=_MODELS,
            device=_DEVICES,
            mode=ARMS,
        )

    def add_model(self, model: str, devices: Sequence[str]) -> None:
        """Create all series of a model and of its instances on `devices`, at zero; those that exist keep their
        values."""
        for series, values in self._per_model:
            for labels in product(*values):
                series.create(model, *labels)
        for series, values in self._per_instance:
            for labels in product(devices, *values):
                series.create(model, *labels)
        for stage in _OTHER_STAGES:
            self.stage_seconds.create(model, NO_DEVICE, stage)

    def remove_model(self, model: str) -> None:
        """Remove all series of a model and of its instances."""
        for series, _ in (*self._per_model, *self._per_instance):
            series.remove(model)

    def add(self, key: Key, amount: float, exemplar: Exemplar | None) -> None:
        """Add what another process has counted to a counter, or to the sum or a bucket of a histogram."""
        bucket = key.sample.endswith("_bucket")
        series = self._by_name[key.name][key.labels[:-1] if bucket else key.labels]
        # prometheus_client has no public way to add to a histogram without an observation.
        if bucket:
            value = series._buckets[series._upper_bounds.index(float(key.labels[-1]))]  # noqa: SLF001
        else:
            value = series._value if key.sample.endswith("_total") else series._sum  # noqa: SLF001
        value.inc(amount)
        if exemplar is not None:
            value.set_exemplar(exemplar)

    def _series(
        self,
        kind: type[Family],
        name: str,
        help_text: str,
        buckets: Sequence[float] | None = None,
        **labels: Sequence[str] | None,
    ) -> Series[Family]:
        options: dict[str, Any] = {} if buckets is None else {"buckets": buckets}
        family = kind(name, help_text, tuple(labels), registry=self._registry, **options)
        series = Series(family)
        known = [values for values in labels.values() if values is not None]
        if "model" in labels:
            series = Series(family, kind(name, help_text, registry=None, **options))
            (self._per_instance if "device" in labels else self._per_model).append((series, known))
        elif len(known) == len(labels):
            for values in product(*known):
                series.create(*values)
        self._by_name[family._name] = series  # noqa: SLF001 - the name that keys of shared counts have
        return series
