"""Families of time series: how counters, histograms and stored gauges are declared, and their series created."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.samples import Exemplar

from app.observability.metrics.counts import Key
from models.interface.telemetry import InstanceId

# Without it each counter and histogram has a second series, the time of its creation.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# Labels of what a model does, and of what one of its instances does. Their values are known at run time.
MODEL = ("model",)
INSTANCE = InstanceId._fields

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

    Series whose label values are all declared exist from the start; those of a model from `add_model` to
    `remove_model`. So `rate()` sees the first event of each.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._by_name: dict[str, Series[Any]] = {}
        # With the values of the labels after `model`, or after `model` and `device`.
        self._per_model: list[tuple[Series[Any], Sequence[Sequence[str]]]] = []
        self._per_instance: list[tuple[Series[Any], Sequence[Sequence[str]]]] = []

    def add_model(self, model: str, devices: Sequence[str]) -> None:
        """Create all series of a model and of its instances on `devices`, at zero; those that exist keep their
        values."""
        for series, values in self._per_model:
            for labels in product(*values):
                series.create(model, *labels)
        for series, values in self._per_instance:
            for labels in product(devices, *values):
                series.create(model, *labels)

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

    def declare(
        self,
        kind: type[Family],
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] | None = None,
        **known: Sequence[str],
    ) -> Series[Family]:
        """Register a family. The values of `labels` (MODEL, INSTANCE or others) are known only at run time; `known` are
        the labels after these and their values."""
        options: dict[str, Any] = {} if buckets is None else {"buckets": buckets}
        family = kind(name, help_text, (*labels, *known), registry=self._registry, **options)
        series = Series(family)
        if "model" in labels:
            series = Series(family, kind(name, help_text, registry=None, **options))
            (self._per_instance if "device" in labels else self._per_model).append((series, list(known.values())))
        elif not labels:
            for values in product(*known.values()):
                series.create(*values)
        self._by_name[family._name] = series  # noqa: SLF001 - the name that keys of shared counts have
        return series
