"""Counts of HTTP workers are added up, complete and never fall, also when a worker is killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import prometheus_client.values
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from app.observability.metrics import CountsReader, Metrics, count_in, create_counts
from models.interface.telemetry import BatchReport, InstanceId

_OPENMETRICS = "application/openmetrics-text; version=1.0.0"
# Not ids of processes: /proc has nothing about them.
_PID, _OTHER_PID = -1, -2


class _Worker:
    """The metrics of an HTTP worker, and `counts`, as the engine process reads them."""

    def __init__(self, descriptor: int) -> None:
        with _restored_values():
            count_in(descriptor)
            self._values = prometheus_client.values.ValueClass
            self.metrics = Metrics()
            self.metrics.expect("/v1/classify", "POST", 200)
            self.metrics.model_shown("tiny", ["cpu"])
        self.counts = CountsReader(descriptor)

    def load_again(self) -> None:
        with _restored_values():
            prometheus_client.values.ValueClass = self._values
            self.metrics.model_gone("tiny")
            self.metrics.model_shown("tiny", ["cpu"])

    def count_requests(self, requests: int) -> None:
        for number in range(requests):
            self.metrics.request_done("/v1/classify", "POST", 200, 0.01, f"id{number}")
            self.metrics.images_done("tiny", "classify", "ok")


@contextmanager
def _restored_values() -> Iterator[None]:
    """Restore prometheus_client: both sides run in one process here, and only one uses the shared memory."""
    own = prometheus_client.values.ValueClass
    try:
        yield
    finally:
        prometheus_client.values.ValueClass = own


@pytest.fixture
def worker() -> Iterator[Callable[[], _Worker]]:
    descriptors: list[int] = []

    def make() -> _Worker:
        descriptors.append(create_counts())
        return _Worker(descriptors[-1])

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture
def engine() -> Metrics:
    metrics = Metrics()
    metrics.model_served("tiny", ["cpu"])
    metrics.batch_ran(BatchReport(InstanceId("tiny", "cpu"), 8, "full", 0.0, 0.5, 0.5, 0))
    return metrics


def _sum(metrics: Metrics, name: str) -> float:
    families = text_string_to_metric_families(metrics.exposition("")[0].decode())
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def test_counts_of_all_processes_are_added_up(engine: Metrics, worker: Callable[[], _Worker]) -> None:
    for pid, requests in ((_PID, 3), (_OTHER_PID, 5)):
        other = worker()
        engine.process_started(pid, other.counts)
        other.count_requests(requests)

    # Each scrape shows the same.
    for _ in range(2):
        assert _sum(engine, "gradless_requests_total") == 8
        assert _sum(engine, "gradless_images_total") == 8
        assert _sum(engine, "gradless_request_duration_seconds_count") == 8
        assert _sum(engine, "gradless_request_duration_seconds_sum") == pytest.approx(0.08)
        assert _sum(engine, "gradless_batch_size_sum") == 8
        # HTTP workers load no models.
        assert _sum(engine, "gradless_model_loads_total") == 1


def test_counts_of_a_process_since_the_last_scrape_survive_its_end(
    engine: Metrics, worker: Callable[[], _Worker]
) -> None:
    other = worker()
    engine.process_started(_PID, other.counts)
    other.count_requests(3)
    assert _sum(engine, "gradless_requests_total") == 3
    other.count_requests(4)
    engine.process_ended(_PID)

    assert _sum(engine, "gradless_requests_total") == 7
    assert _sum(engine, "gradless_request_duration_seconds_count") == 7


def test_series_of_other_processes_exist_before_the_first_event(engine: Metrics, worker: Callable[[], _Worker]) -> None:
    engine.process_started(_PID, worker().counts)
    expected = 'gradless_requests_total{code="200",contract="native",method="POST",route="/v1/classify"} 0.0'

    assert expected in engine.exposition("")[0].decode().splitlines()


def test_late_counts_of_an_unloaded_model_create_no_series(engine: Metrics, worker: Callable[[], _Worker]) -> None:
    other = worker()
    engine.process_started(_PID, other.counts)
    other.count_requests(1)
    engine.model_gone("tiny")
    other.count_requests(1)
    assert "tiny" not in engine.exposition("")[0].decode()

    engine.model_served("tiny", ["cpu"])
    other.load_again()
    other.count_requests(2)
    assert _sum(engine, "gradless_images_total") == 2


def test_openmetrics_includes_the_exemplars_of_other_processes(engine: Metrics, worker: Callable[[], _Worker]) -> None:
    other = worker()
    engine.process_started(_PID, other.counts)
    other.count_requests(1)
    exposition = engine.exposition(_OPENMETRICS)[0].decode()

    samples = [sample for family in openmetrics_families(exposition) for sample in family.samples]
    assert [sample.exemplar.labels["request_id"] for sample in samples if sample.exemplar] == ["id0"]


def test_memory_of_processes_is_added_up_and_their_cpu_time_never_falls() -> None:
    metrics = Metrics()
    alone = {name: _sum(metrics, name) for name in ("process_resident_memory_bytes", "process_start_time_seconds")}
    descriptor = create_counts()
    # This process a second time.
    metrics.process_started(os.getpid(), CountsReader(descriptor))
    os.close(descriptor)
    twice = {name: _sum(metrics, name) for name in alone}
    cpu_seconds = _sum(metrics, "process_cpu_seconds_total")
    metrics.process_ended(os.getpid())

    assert twice["process_resident_memory_bytes"] == pytest.approx(2 * alone["process_resident_memory_bytes"], rel=0.2)
    assert twice["process_start_time_seconds"] == alone["process_start_time_seconds"]
    assert _sum(metrics, "process_resident_memory_bytes") < twice["process_resident_memory_bytes"]
    assert _sum(metrics, "process_cpu_seconds_total") >= cpu_seconds
