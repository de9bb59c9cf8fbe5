"""One scrape of an engine process and its fronts: what each has counted is added up, what one knows is its own."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from app.fronts.exposition import added
from app.metrics import Metrics
from models.telemetry import BatchReport

_OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def _front(requests: int, accept: str = "") -> str:
    metrics = Metrics()
    metrics.model_shown("tiny")
    for number in range(requests):
        metrics.request_done("/v1/classify", "POST", 200, 0.01, f"id{number}")
        metrics.images_done("tiny", "classify", "ok")
    return metrics.exposition(accept)[0].decode()


def _engine(accept: str = "") -> str:
    metrics = Metrics()
    metrics.model_served("tiny")
    metrics.batch_ran(BatchReport("tiny", 8, "full", 0.0, 0.5, 0.5, 0))
    return metrics.exposition(accept)[0].decode()


def _values(exposition: str, name: str) -> list[float]:
    families = text_string_to_metric_families(exposition)
    return [sample.value for family in families for sample in family.samples if sample.name == name]


def test_what_each_process_counts_is_added_up() -> None:
    together = added(_engine(), [_front(3), _front(5)])

    assert sum(_values(together, "gradless_requests_total")) == 8
    assert sum(_values(together, "gradless_images_total")) == 8
    assert sum(_values(together, "gradless_request_duration_seconds_count")) == 8
    assert _values(together, "gradless_batch_size_sum") == [8]
    # Fronts load nothing.
    assert sum(_values(together, "gradless_model_loads_total")) == 1


def test_gauges_are_the_engine_processs_but_for_what_every_process_has() -> None:
    engine, fronts = _engine(), [_front(1), _front(1)]
    together = added(engine, fronts)

    for name in ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"):
        each = [value for exposition in (engine, *fronts) for value in _values(exposition, name)]
        assert _values(together, name) == [pytest.approx(sum(each))]
    for name in ("process_start_time_seconds", "process_max_fds"):
        assert _values(together, name) == _values(engine, name)


def test_nothing_is_said_twice_and_nothing_left_out() -> None:
    alone = _front(1)
    together = added(_engine(), [alone, _front(2)])

    assert [line for line in together.splitlines() if line.startswith("#")] == [
        line for line in alone.splitlines() if line.startswith("#")
    ]
    series = [line.rpartition(" ")[0] for line in together.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert {line.rpartition(" ")[0] for line in alone.splitlines() if not line.startswith("#")} <= set(series)


def test_openmetrics_stays_openmetrics_with_exemplars_and_one_end() -> None:
    together = added(_engine(_OPENMETRICS), [_front(1, _OPENMETRICS), _front(1, _OPENMETRICS)])

    samples = [sample for family in openmetrics_families(together) for sample in family.samples]
    assert [sample.exemplar.labels["request_id"] for sample in samples if sample.exemplar] == ["id0"]
    assert together.count("# EOF") == 1
