"""`make observe`, and what its Prometheus answers: no panel, rule or alert asks for something that is not there."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from observe.expressions import all_expressions
from observe.prometheus import Prometheus

AwaitThat = Callable[[Callable[[], bool]], bool]
Promtool = Callable[..., subprocess.CompletedProcess[str]]


def test_within_minutes_every_expression_has_data(observing: Any, watched: Prometheus) -> None:
    found = observing.wait_for(r"^(\d+) of (\d+) expressions have data, within \d+ s$")
    empty = [line for line in observing.said if line.startswith("no data")]
    assert int(found[1]) == int(found[2]) == len(all_expressions("1m")) > 100, empty
    assert watched.failing_rules() == {}


@pytest.mark.parametrize(
    "counted",
    [
        'gradless_requests_total{route="/v1/search", method="POST", code="404"}',
        'gradless_requests_total{route="/debug/grad-modes", method="POST", code="403"}',
        'gradless_requests_total{route="other", method="GET", code="421"}',
        'gradless_requests_total{route="other", method="other", code="400"}',
        'gradless_rejected_total{reason="auth"}',
    ],
)
def test_the_uninvited_are_among_those_who_call(watched: Prometheus, await_that: AwaitThat, counted: str) -> None:
    assert await_that(lambda: watched.has_numbers(f"{counted} > 0"))


def test_exemplars_lead_from_a_bucket_to_a_request(watched: Prometheus, await_that: AwaitThat) -> None:
    def exemplars() -> list[dict[str, str]]:
        now = time.time()
        found = watched.exemplars("gradless_request_duration_seconds_bucket", start=now - 300, end=now)
        return [dict(labels) for labels in found]

    assert await_that(lambda: bool(exemplars()))
    assert all(labels.keys() == {"request_id"} for labels in exemplars())


def test_a_metric_that_nobody_exports_is_noticed(watched: Prometheus) -> None:
    assert not watched.has_numbers("gradless_no_such_metric")
    assert not watched.has_numbers("0 / (up - 1)")


def test_promtool_has_nothing_to_say_of_the_metrics(observed_server: str, promtool: Promtool) -> None:
    exposition = httpx2.get(f"{observed_server}/metrics", timeout=30).text
    checked = promtool("check", "metrics", stdin=exposition)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# Last of all here: it is the same one.
def test_ctrl_c_ends_all_of_it(observing: Any, observed_server: str, watched: Prometheus) -> None:
    assert observing.interrupt() == 0
    for address in (observed_server, watched.address):
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(address)
