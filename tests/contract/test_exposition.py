"""Prometheus can parse both formats of /metrics."""

from __future__ import annotations

import httpx2
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture(scope="module", autouse=True)
def _one_image_answered(address: str, clock_png: bytes) -> None:
    httpx2.post(f"{address}/v1/classify", content=clock_png, timeout=30).raise_for_status()


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/plain;version=0.0.4", "nonsense", ";;,="])
def test_the_text_format_parses(address: str, accept: str) -> None:
    answer = httpx2.get(f"{address}/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"] == PROMETHEUS_TEXT
    families = {family.name: family for family in prometheus_text(answer.text)}
    assert families["gradless_requests"].type == "counter"
    assert families["gradless_batch_size"].type == "histogram"
    assert families["gradless_in_flight_images"].type == "gauge"
    assert all(family.documentation for name, family in families.items() if name.startswith("gradless"))


def test_openmetrics_parses_under_its_strict_rules(address: str) -> None:
    asked_by_prometheus = (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    )
    answer = httpx2.get(f"{address}/metrics", headers={"Accept": asked_by_prometheus})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    assert "gradless_images" in {family.name for family in openmetrics(answer.text)}


@pytest.mark.parametrize("version", ["x", "", "1", "99.9.9"])
def test_an_unknown_openmetrics_version_is_not_an_internal_error(address: str, version: str) -> None:
    accept = f"application/openmetrics-text;version={version}"
    assert httpx2.get(f"{address}/metrics", headers={"Accept": accept}).status_code == 200
