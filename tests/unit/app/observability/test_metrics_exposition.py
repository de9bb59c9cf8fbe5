"""The exposition equals what prometheus_client's encoders write, for any registry."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from app.observability.metrics.exposition import Exposition
from app.observability.metrics.families import LabelledHistogram

_VALUES = [0.0, 1, -2.5, 1e-9, 123456789.0, 2.0**80, float("inf"), float("-inf"), float("nan")]
_STRANGE = 'a "b"\n\\c ü'


@pytest.fixture
def registry() -> CollectorRegistry:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    gauge = Gauge("g", f"Help of {_STRANGE}.", ["number", "strange"], registry=registry)
    for number, value in enumerate(_VALUES):
        gauge.labels(str(number), _STRANGE).set(value)
    Gauge("unlabelled", "One number.", registry=registry).set(7)
    counter = Counter("c_total", "Events.", ["z", "a"], registry=registry)
    counter.labels("1", "2").inc(3)
    counter.labels("1", "3").inc(4, exemplar={"request_id": "counted"})
    histogram = Histogram("h_seconds", "Times.", ["model"], registry=registry, buckets=(0.0005, 1, 30, 1e7))
    histogram.labels("m")
    histogram.labels("n").observe(0.25, exemplar={"request_id": _STRANGE, "b": "second"})
    histogram.labels("n").observe(5e6)
    return registry


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain; version=0.0.4",
        "text/plain; version=1.0.0; escaping=allow-utf-8",
        "application/openmetrics-text; version=0.0.1",
        "application/openmetrics-text; version=1.0.0",
        "application/openmetrics-text; version=1.0.0; escaping=underscores, text/plain; q=0.5",
    ],
)
def test_it_is_byte_for_byte_what_the_library_writes(registry: CollectorRegistry, accept: str) -> None:
    encode, content_type = choose_encoder(accept)
    exposition = Exposition(registry)

    for _ in ("the first time", "with kept names"):
        assert exposition.encode(accept) == (encode(registry), content_type)


def test_a_series_that_comes_later_is_written_too(registry: CollectorRegistry) -> None:
    exposition = Exposition(registry)
    exposition.encode("")
    Counter("late_total", "Late.", ["model"], registry=registry).labels("m").inc()

    assert b'late_total{model="m"} 1.0\n' in exposition.encode("")[0]


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_histograms_that_keep_their_labels_are_written_as_the_librarys(
    monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    # The moment of an exemplar.
    monkeypatch.setattr("prometheus_client.metrics.time.time", lambda: 1.5)

    def written(kind: type[Histogram]) -> bytes:
        registry = CollectorRegistry()
        histogram = kind("h_seconds", "Times.", ["model", "a"], registry=registry, buckets=(0.0005, 1, 30, 1e7))
        histogram.labels("n", _STRANGE).observe(0.25, exemplar={"request_id": "mine"})
        histogram.labels("n", _STRANGE).observe(5e6)
        histogram.labels("m", "")
        histogram.labels("gone", "").observe(1)
        histogram.remove("gone", "")
        encode, _ = choose_encoder(accept)
        return encode(registry)

    assert written(LabelledHistogram) == written(Histogram)
