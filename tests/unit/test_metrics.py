"""app/metrics.py: every series is there from the start, and the exposition is what scrapers read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from app.metrics import Metrics
from app.problems import Reason
from models.comparison import Comparison, Mode, ModeReport, Retained
from models.telemetry import BatchReport, Outcome, Stage, StageSeconds, Task, Trigger

if TYPE_CHECKING:
    from tests.unit.conftest import FakeRuntime

_OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Labels = frozenset[tuple[str, str]]


def _families(metrics: Metrics) -> dict[str, Metric]:
    body, _ = metrics.exposition("")
    return {family.name: family for family in prometheus_families(body.decode())}


def _samples(metrics: Metrics) -> dict[tuple[str, Labels], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in _families(metrics).values()
        for sample in family.samples
    }


def _value(metrics: Metrics, name: str, **labels: str) -> float:
    return _samples(metrics)[name, frozenset(labels.items())]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        *(("gradless_rejected_total", {"reason": reason}) for reason in get_args(Reason)),
        *(
            (name, {"model": model, **labels})
            for model in ("a", "b")
            for name, labels in [
                ("gradless_batch_size_count", {}),
                *(("gradless_batches_total", {"trigger": trigger}) for trigger in get_args(Trigger)),
                *(("gradless_cancelled_total", {"stage": stage}) for stage in get_args(Stage)),
                *(
                    ("gradless_stage_duration_seconds_count", {"stage": stage})
                    for stage in ("read", *get_args(Stage), "respond")
                ),
                *(
                    ("gradless_images_total", {"task": task, "outcome": outcome})
                    for task in get_args(Task)
                    for outcome in get_args(Outcome)
                ),
            ]
        ),
    ],
)
def test_every_series_of_an_event_is_there_and_zero_before_the_first(name: str, labels: dict[str, str]) -> None:
    assert _value(Metrics(["a", "b"]), name, **labels) == 0


@pytest.mark.parametrize("name", ["gradless_forward_seconds", "gradless_forward_retained_bytes"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_what_no_comparison_has_measured_is_no_number(name: str, mode: str) -> None:
    assert math.isnan(_value(Metrics(["a"]), name, model="a", mode=mode))


def test_events_create_no_series_beside_those_of_the_start() -> None:
    metrics = Metrics(["a"])
    before = set(_samples(metrics))

    for reason in get_args(Reason):
        metrics.rejected(reason)
    for trigger in get_args(Trigger):
        metrics.batch_ran(BatchReport("a", 3, trigger, 0.1, dropped=0))
    for stage in get_args(Stage):
        metrics.image_cancelled("a", stage)
    metrics.images_done("a", "classify", "ok", 2)
    metrics.image_took("a", StageSeconds(0.1, 0.2, 0.3))
    metrics.request_stages("a", 0.1, 0.2)
    metrics.compared(_comparison())

    assert set(_samples(metrics)) == before


def _comparison() -> Comparison:
    modes: tuple[Mode, ...] = get_args(Mode)
    reports = tuple(ModeReport(mode, 0.5, Retained(1000, 3), mode == "grad", 0.0) for mode in modes)
    return Comparison("a", "f", "cpu", 8, 5, reports)


def test_events_are_counted_under_their_labels() -> None:
    metrics = Metrics(["a", "b"])

    metrics.batch_ran(BatchReport("a", 3, "idle", 0.1, dropped=1))
    metrics.images_done("a", "features", "bad_image", 2)
    metrics.image_took("a", StageSeconds(decode=1.0, queue=2.0, forward=4.0))
    metrics.request_stages("a", read_seconds=8.0, respond_seconds=16.0)
    metrics.compared(_comparison())

    assert _value(metrics, "gradless_batches_total", model="a", trigger="idle") == 1
    assert _value(metrics, "gradless_batch_size_sum", model="a") == 3
    assert _value(metrics, "gradless_batch_size_sum", model="b") == 0
    assert _value(metrics, "gradless_images_total", model="a", task="features", outcome="bad_image") == 2
    seconds = {
        stage: _value(metrics, "gradless_stage_duration_seconds_sum", model="a", stage=stage)
        for stage in ("decode", "queue", "forward", "read", "respond")
    }
    assert seconds == {"decode": 1.0, "queue": 2.0, "forward": 4.0, "read": 8.0, "respond": 16.0}
    assert _value(metrics, "gradless_forward_retained_bytes", model="a", mode="grad") == 1000


def test_two_applications_in_one_process_count_apart() -> None:
    first, second = Metrics(["a"]), Metrics(["a"])

    first.rejected("deadline")

    assert _value(first, "gradless_rejected_total", reason="deadline") == 1
    assert _value(second, "gradless_rejected_total", reason="deadline") == 0


def test_methods_and_routes_that_callers_invent_share_one_series() -> None:
    metrics = Metrics(["a"])

    metrics.request_done(None, "BREW", 405, 0.1)
    metrics.request_done(None, "WHEN", 405, 0.1)

    assert _value(metrics, "gradless_requests_total", route="other", method="other", code="405") == 2


def test_gauges_are_read_from_the_runtime_at_each_scrape(new_runtime: Callable[..., FakeRuntime]) -> None:
    metrics, runtime = Metrics(["fake"]), new_runtime()
    metrics.watch(runtime)
    card: dict[str, Any] = {"model": "fake", "device": "cpu", "dtype": "float32", "backend": "eager"}

    assert _value(metrics, "gradless_queue_depth", model="fake") == 2
    assert _value(metrics, "gradless_queue_oldest_age_seconds", model="fake") == 0.25
    assert _value(metrics, "gradless_in_flight_images", model="fake") == 5
    assert _value(metrics, "gradless_model_load_seconds", **card) == 1.5
    assert _value(metrics, "gradless_model_weights_bytes", **card) == 28
    assert _value(metrics, "gradless_device_memory_bytes", device="cpu", kind="free") == 200
    assert _value(metrics, "gradless_model_ready", **card) == 1
    runtime.drain()
    assert _value(metrics, "gradless_model_ready", **card) == 0


def test_the_exposition_is_prometheus_text_unless_openmetrics_is_asked_for(
    new_runtime: Callable[..., FakeRuntime],
) -> None:
    metrics = Metrics(["fake"])
    metrics.watch(new_runtime())

    plain, plain_type = metrics.exposition("*/*")
    fancy, fancy_type = metrics.exposition(_OPENMETRICS)

    assert plain_type.startswith("text/plain")
    assert fancy_type.startswith("application/openmetrics-text")
    assert fancy.endswith(b"# EOF\n")
    names = {family.name for family in prometheus_families(plain.decode())}
    # OpenMetrics names a counter's family without _total.
    assert {family.name for family in openmetrics_families(fancy.decode())} == names
    assert {"gradless_images", "gradless_queue_depth", "gradless_build_info", "process_cpu_seconds"} <= names


def test_every_metric_of_ours_has_the_prefix_a_base_unit_and_a_help_text(
    new_runtime: Callable[..., FakeRuntime],
) -> None:
    metrics = Metrics(["fake"])
    metrics.watch(new_runtime())

    for name, family in _families(metrics).items():
        assert family.documentation
        assert name.startswith(("gradless_", "process_"))
        assert not name.endswith(("_ms", "_milliseconds", "_mb", "_created"))
