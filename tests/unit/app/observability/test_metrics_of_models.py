"""The series of a model exist while it is served, through all its versions, and no longer."""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from app.observability.metrics import Metrics
from gradless.records import Comparison, ComparisonOptions

NewComparison = Callable[[str, ComparisonOptions], Comparison]

Labels = frozenset[tuple[str, str]]


def _serving(model: str) -> Metrics:
    metrics = Metrics()
    metrics.model_served(model, ["cpu"])
    return metrics


def _samples(metrics: Metrics) -> dict[tuple[str, Labels], float]:
    body, _ = metrics.exposition("")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def _value(metrics: Metrics, name: str, **labels: str) -> float:
    return _samples(metrics)[name, frozenset(labels.items())]


def test_the_series_of_a_model_exist_until_it_is_unloaded(
    new_comparison: NewComparison,
) -> None:
    metrics = _serving("a")
    before = _samples(metrics)

    metrics.model_served("b", ["cpu"])
    metrics.images_done("b", "classify", "ok")
    metrics.compared(new_comparison("b", ComparisonOptions()))
    assert _value(metrics, "gradless_images_total", model="b", task="classify", outcome="ok") == 1
    metrics.model_gone("b")
    # Reported by a request whose response was still being sent.
    metrics.request_stages("b", 0.1, 0.2)
    metrics.images_done("b", "classify", "ok")
    metrics.compared(new_comparison("b", ComparisonOptions()))
    metrics.model_replaced("b")

    assert _samples(metrics).keys() == before.keys()
    metrics.model_served("b", ["cpu"])
    assert _value(metrics, "gradless_images_total", model="b", task="classify", outcome="ok") == 0


def test_a_new_version_keeps_the_counts_and_clears_the_last_comparison(new_comparison: NewComparison) -> None:
    metrics = _serving("a")
    metrics.images_done("a", "classify", "ok", 3)
    metrics.compared(new_comparison("a", ComparisonOptions()))

    metrics.model_served("a", ["cpu"])

    assert _value(metrics, "gradless_images_total", model="a", task="classify", outcome="ok") == 3
    assert _value(metrics, "gradless_model_loads_total", model="a", outcome="ok") == 2
    assert math.isnan(_value(metrics, "gradless_forward_seconds", model="a", device="cpu", mode="grad"))


def test_failed_loads_are_counted_by_model_only_if_it_is_served() -> None:
    metrics = _serving("a")
    before = _samples(metrics).keys()

    for name in ("a", "b", "c"):
        metrics.model_not_loaded(name)

    assert _value(metrics, "gradless_model_loads_total", model="a", outcome="failed") == 1
    assert _value(metrics, "gradless_model_loads_total", model="(not served)", outcome="failed") == 2
    assert _samples(metrics).keys() == before
