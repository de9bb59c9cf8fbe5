"""Metrics: each series exists from the start, and the exposition has the requested format."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

import pytest
from fastapi import FastAPI
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from app.http.problems import Reason
from app.observability.metrics import Metrics
from app.observability.metrics.sink import Answered, WorkerEnd
from gradless.records import Comparison, ComparisonOptions
from models.interface.telemetry import BatchReport, InstanceId, Outcome, Stage, StageSeconds, Task, Trigger

if TYPE_CHECKING:
    from tests.unit.conftest import FakeRuntime

_OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Labels = frozenset[tuple[str, str]]

_A = InstanceId("a", "cpu")
# A label without value is none in Prometheus: model instances do the stages queue and forward only.
_DEVICE_OF_STAGE = {"read": "", "decode": "", "queue": "cpu", "forward": "cpu", "respond": ""}


def _metrics_of(*models: str) -> Metrics:
    """Metrics of an application that serves these models."""
    metrics = Metrics()
    for model in models:
        metrics.model_served(model, ["cpu"])
    return metrics


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


FORWARD_GAUGES = ["gradless_forward_seconds", "gradless_forward_peak_bytes", "gradless_forward_retained_bytes"]

NewComparison = Callable[[str, ComparisonOptions], Comparison]


def test_every_series_is_there_before_its_first_event(new_comparison: NewComparison) -> None:
    metrics = _metrics_of("a", "b")
    before = _samples(metrics)

    for reason in get_args(Reason):
        metrics.rejected(reason)
    for why in get_args(WorkerEnd):
        metrics.worker_replaced(why)
    for trigger in get_args(Trigger):
        metrics.batch_ran(BatchReport(_A, 3, trigger, 0.0, 0.1, 0.1, dropped=0))
    for stage in get_args(Stage):
        metrics.image_cancelled("a", stage, 0.02)
    for task, outcome in product(get_args(Task), get_args(Outcome)):
        metrics.images_done("a", task, outcome)
    for answered in get_args(Answered):
        metrics.model_request_done("a", answered, 0.3)
    metrics.image_took(_A, StageSeconds(0.1, 0.2, 0.3))
    metrics.request_stages("a", 0.1, 0.2)
    metrics.out_of_memory(_A)
    metrics.batch_split(_A)
    metrics.model_replaced("a")
    metrics.model_not_loaded("a")
    metrics.compared(new_comparison("a", ComparisonOptions()))

    after = _samples(metrics)
    assert after.keys() == before.keys()
    # What has no series is not counted.
    counted: Counter[str] = Counter()
    for (name, _), value in after.items():
        counted[name] += int(value) if name.endswith("_total") else 0
    assert counted["gradless_rejected_total"] == len(get_args(Reason))
    assert counted["gradless_worker_replacements_total"] == len(get_args(WorkerEnd))
    assert counted["gradless_batches_total"] == len(get_args(Trigger))
    assert counted["gradless_cancelled_total"] == len(get_args(Stage))
    assert counted["gradless_images_total"] == len(get_args(Task)) * len(get_args(Outcome))
    assert counted["gradless_model_requests_total"] == len(get_args(Answered))
    for why in ("full", "error"):
        assert ("gradless_log_lines_dropped_total", frozenset({("reason", why)})) in before
    own = [(name, value) for (name, _), value in before.items() if name.startswith("gradless_")]
    assert {name for name, value in own if math.isnan(value)} == set(FORWARD_GAUGES)
    # The model has been loaded. All else has not happened yet.
    assert {name for name, value in own if value > 0} == {"gradless_model_loads_total"}


def test_events_are_counted_under_their_labels() -> None:
    metrics = _metrics_of("a", "b")

    metrics.batch_ran(BatchReport(_A, 3, "idle", 0.0, 0.75, 0.25, dropped=1))
    metrics.batch_ran(BatchReport(_A, 5, "full", 1.0, 0.5, 0.5, dropped=0))
    metrics.out_of_memory(_A)
    metrics.batch_split(_A)
    metrics.model_replaced("a")
    metrics.images_done("a", "features", "bad_image", 2)
    metrics.image_took(_A, StageSeconds(decode=1.0, queue=2.0, forward=4.0))
    metrics.request_stages("a", read_seconds=8.0, respond_seconds=16.0)
    metrics.model_request_done("a", "ok", 0.5)
    metrics.model_request_done("a", "failed", 0.25)

    assert _value(metrics, "gradless_batches_total", model="a", device="cpu", trigger="idle") == 1
    assert _value(metrics, "gradless_batch_size_sum", model="a", device="cpu") == 8
    assert _value(metrics, "gradless_forward_busy_seconds_total", model="a", device="cpu") == 0.75
    for name in ("gradless_out_of_memory_total", "gradless_batch_splits_total"):
        assert _value(metrics, name, model="a", device="cpu") == 1
        assert _value(metrics, name, model="b", device="cpu") == 0
    assert _value(metrics, "gradless_model_replacements_total", model="a") == 1
    assert _value(metrics, "gradless_batch_size_sum", model="b", device="cpu") == 0
    assert _value(metrics, "gradless_images_total", model="a", task="features", outcome="bad_image") == 2
    for outcome, seconds in (("ok", 0.5), ("failed", 0.25)):
        assert _value(metrics, "gradless_model_requests_total", model="a", outcome=outcome) == 1
        assert _value(metrics, "gradless_model_request_seconds_total", model="a", outcome=outcome) == seconds
    assert time.time() - _value(metrics, "gradless_last_batch_timestamp_seconds", model="a") < 100
    assert _value(metrics, "gradless_last_batch_timestamp_seconds", model="b") == 0
    spent = {
        stage: _value(metrics, "gradless_stage_duration_seconds_sum", model="a", device=device, stage=stage)
        for stage, device in _DEVICE_OF_STAGE.items()
    }
    assert spent == {"decode": 1.0, "queue": 2.0, "forward": 4.0, "read": 8.0, "respond": 16.0}


def test_instances_of_one_model_on_two_devices_are_counted_apart(new_runtime: Callable[..., FakeRuntime]) -> None:
    metrics, devices = Metrics(), ("cuda:0", "cuda:1")
    metrics.model_served("a", devices)
    metrics.watch(new_runtime(device_names=devices, names=("a",)))
    metrics.batch_ran(BatchReport(InstanceId("a", "cuda:1"), 3, "idle", 0.0, 0.75, 0.25, dropped=1))

    for device, images in zip(devices, (0, 3), strict=True):
        assert _value(metrics, "gradless_batch_size_sum", model="a", device=device) == images
        assert _value(metrics, "gradless_queue_depth", model="a", device=device) == 2
        assert _value(metrics, "gradless_device_memory_bytes", device=device, kind="free") == 200
        card = {"model": "a", "device": device, "dtype": "float32", "backend": "eager"}
        assert _value(metrics, "gradless_model_weights_bytes", **card) == 28
    assert _value(metrics, "gradless_model_loads_total", model="a", outcome="ok") == 1
    metrics.model_gone("a")
    assert not any(dict(labels).get("model") == "a" for name, labels in _samples(metrics) if "batch_size_sum" in name)


def test_gauges_of_a_comparison_are_labelled_by_model_and_arm(new_comparison: NewComparison) -> None:
    metrics = _metrics_of("a", "b")

    metrics.compared(new_comparison("a", ComparisonOptions()))

    found = [
        [_value(metrics, name, model="a", device="cpu", mode=arm) for name in FORWARD_GAUGES]
        for arm in ("grad", "no_grad")
    ]
    assert found == [[0.5, 2000, 1000], [1.5, 2001, 0]]
    assert math.isnan(_value(metrics, "gradless_forward_peak_bytes", model="a", device="cpu", mode="served"))
    assert math.isnan(_value(metrics, "gradless_forward_seconds", model="b", device="cpu", mode="grad"))


def test_an_arm_that_the_last_comparison_left_out_is_nan(new_comparison: NewComparison) -> None:
    metrics = _metrics_of("a")

    metrics.compared(new_comparison("a", ComparisonOptions()))
    metrics.compared(new_comparison("a", ComparisonOptions(arms=("no_grad",))))

    assert _value(metrics, "gradless_forward_seconds", model="a", device="cpu", mode="no_grad") == 0.5
    assert all(math.isnan(_value(metrics, name, model="a", device="cpu", mode="grad")) for name in FORWARD_GAUGES)


def test_two_applications_in_one_process_count_separately() -> None:
    first, second = _metrics_of("a"), _metrics_of("a")

    first.rejected("deadline")

    assert _value(first, "gradless_rejected_total", reason="deadline") == 1
    assert _value(second, "gradless_rejected_total", reason="deadline") == 0


def test_gauges_are_read_from_the_runtime_at_each_scrape(new_runtime: Callable[..., FakeRuntime]) -> None:
    metrics, runtime = _metrics_of("fake"), new_runtime()
    metrics.watch(runtime)
    card: dict[str, Any] = {"model": "fake", "device": "cpu", "dtype": "float32", "backend": "eager"}

    assert _value(metrics, "gradless_queue_depth", model="fake", device="cpu") == 2
    assert _value(metrics, "gradless_queue_oldest_age_seconds", model="fake", device="cpu") == 0.25
    assert _value(metrics, "gradless_in_flight_images", model="fake") == 5
    assert _value(metrics, "gradless_queue_capacity_images", model="fake") == 20
    assert _value(metrics, "gradless_batch_running_seconds", model="fake", device="cpu") == 1.25
    assert _value(metrics, "gradless_batch_size_limit", model="fake", device="cpu") == 8
    assert _value(metrics, "gradless_model_load_seconds", **card) == 1.5
    assert _value(metrics, "gradless_model_weights_bytes", **card) == 28
    version = {"architecture": "none", "fingerprint": "0123456789abcdef", "version": "1"}
    assert _value(metrics, "gradless_model_info", model="fake", **version) == 1
    assert _value(metrics, "gradless_device_memory_bytes", device="cpu", kind="free") == 200
    assert _value(metrics, "gradless_model_ready", **card) == 1
    assert _value(metrics, "gradless_batcher_alive", model="fake", device="cpu") == 1
    runtime.drain()
    assert _value(metrics, "gradless_model_ready", **card) == 0
    assert _value(metrics, "gradless_batcher_alive", model="fake", device="cpu") == 0


@pytest.mark.parametrize(("busy", "shown"), [(0.75, {"gradless_device_utilization_ratio": 0.75}), (None, {})])
def test_device_utilization_is_exported_if_the_runtime_reports_it(
    new_runtime: Callable[..., FakeRuntime], busy: float | None, shown: dict[str, float]
) -> None:
    metrics = _metrics_of("fake")
    metrics.watch(new_runtime(busy=busy))

    found = {name: value for (name, _), value in _samples(metrics).items() if "utilization" in name}
    assert found == shown


@pytest.mark.parametrize("accept", ["", "nonsense", "text/plain; version=x.y", f"{_OPENMETRICS[:-5]}x.y"])
def test_any_other_accept_header_gets_prometheus_text(accept: str) -> None:
    body, content_type = Metrics().exposition(accept)

    assert content_type.startswith("text/plain")
    assert b"# EOF" not in body


def test_the_exposition_is_prometheus_text_unless_openmetrics_is_requested(
    new_runtime: Callable[..., FakeRuntime],
) -> None:
    metrics = _metrics_of("fake")
    metrics.watch(new_runtime())

    metrics.request_done("/v1/classify", "POST", 200, 0.1, "mine")
    plain, plain_type = metrics.exposition("*/*")
    openmetrics, openmetrics_type = metrics.exposition(_OPENMETRICS)

    assert plain_type.startswith("text/plain")
    assert openmetrics_type.startswith("application/openmetrics-text")
    assert openmetrics.endswith(b"# EOF\n")
    assert b' # {request_id="mine"} 0.1 ' in openmetrics
    assert b"mine" not in plain
    names = {family.name for family in prometheus_families(plain.decode())}
    # OpenMetrics names a counter's family without _total.
    assert {family.name for family in openmetrics_families(openmetrics.decode())} == names
    assert {"gradless_images", "gradless_queue_depth", "gradless_build_info", "process_cpu_seconds"} <= names


def test_the_number_of_series_is_bounded_by_routes_and_models(
    application: Callable[..., FastAPI], new_runtime: Callable[..., FakeRuntime]
) -> None:
    def series(*models: str) -> int:
        metrics = application({"names": models}).state.parts.metrics
        metrics.watch(new_runtime(names=models).started(metrics))
        return len(_samples(metrics))

    one, two, three = series("a"), series("a", "b"), series("a", "b", "c")
    assert one < 1150
    assert two - one == three - two < 180


def test_every_metric_has_a_prefix_a_base_unit_and_a_help_text(
    new_runtime: Callable[..., FakeRuntime],
) -> None:
    metrics = _metrics_of("fake")
    metrics.watch(new_runtime())

    for name, family in _families(metrics).items():
        assert family.documentation
        assert name.startswith(("gradless_", "process_"))
        assert not name.endswith(("_ms", "_milliseconds", "_mb", "_created"))
