"""`make observe`: each expression of panels, rules and alerts has data in its Prometheus."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from observe.configuration import all_expressions
from observe.prometheus import Prometheus

AwaitThat = Callable[[Callable[[], bool]], bool]
Promtool = Callable[..., subprocess.CompletedProcess[str]]


def test_every_expression_has_data_within_minutes(observing: Any, watched: Prometheus) -> None:
    found = observing.wait_for(r"^(\d+) of (\d+) expressions have data, within \d+ s$")
    empty = [line for line in observing.output if line.startswith("no data")]
    assert int(found[1]) == int(found[2]) == len(all_expressions("1m")) > 100, empty
    assert watched.failing_rules() == {}


@pytest.mark.parametrize(
    "series",
    [
        'gradless_requests_total{route="/v1/search", method="POST", code="404"}',
        'gradless_requests_total{route="/debug/grad-modes", method="POST", code="403"}',
        'gradless_requests_total{route="other", method="GET", code="421"}',
        'gradless_requests_total{route="other", method="other", code="400"}',
        'gradless_rejected_total{reason="auth"}',
    ],
)
def test_the_traffic_includes_refused_requests(watched: Prometheus, await_that: AwaitThat, series: str) -> None:
    assert await_that(lambda: watched.has_numbers(f"{series} > 0"))


def test_exemplars_lead_from_a_bucket_to_a_request(watched: Prometheus, await_that: AwaitThat) -> None:
    def exemplars() -> list[dict[str, str]]:
        now = time.time()
        found = watched.exemplars("gradless_request_duration_seconds_bucket", start=now - 300, end=now)
        return [dict(labels) for labels in found]

    assert await_that(lambda: bool(exemplars()))
    assert all(labels.keys() == {"request_id"} for labels in exemplars())


def test_a_metric_that_does_not_exist_has_no_data(watched: Prometheus) -> None:
    assert not watched.has_numbers("gradless_no_such_metric")
    assert not watched.has_numbers("0 / (up - 1)")


def test_promtool_accepts_the_exposition(observed_server: str, promtool: Promtool) -> None:
    exposition = httpx2.get(f"{observed_server}/metrics", timeout=30).text
    checked = promtool("check", "metrics", stdin=exposition)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# The last test: it stops the shared server.
def test_ctrl_c_stops_all_processes(observing: Any, observed_server: str, watched: Prometheus) -> None:
    assert observing.interrupt() == 0
    for address in (observed_server, watched.address):
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(address)
