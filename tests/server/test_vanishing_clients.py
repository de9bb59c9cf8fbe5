"""Clients that leave in the middle of a request leave nothing behind."""

from __future__ import annotations

import signal
from collections.abc import Callable
from time import sleep
from typing import Any

import httpx2
import pytest

CLIENTS = 200


def test_two_hundred_disconnected_clients_leave_no_image_in_flight(
    holding_server: Any, clock_jpeg: bytes, metric_sum: Callable[..., float]
) -> None:
    def scrape() -> str:
        sleep(0.02)
        return httpx2.get(f"{holding_server.address}/metrics").text

    def count_requests(exposition: str) -> float:
        return metric_sum(exposition, "gradless_requests_total", route="/v1/classify")

    def gone(exposition: str) -> float:
        return metric_sum(exposition, "gradless_requests_total", route="/v1/classify", code="499")

    before = scrape()
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(clock_jpeg)}\r\n\r\n".encode()
    for number in range(CLIENTS):
        with holding_server.connect() as connection:
            sent = clock_jpeg if number % 2 else clock_jpeg[: len(clock_jpeg) // 2]
            connection.sendall(head + sent)

    # Each scrape is an answer of the same event loop; the test's own timeout is the deadline.
    after = scrape()
    while count_requests(after) - count_requests(before) < CLIENTS:
        after = scrape()
    while metric_sum(after, "gradless_in_flight_images"):
        after = scrape()
    assert count_requests(after) - count_requests(before) == CLIENTS
    # At least those that disconnected during their body.
    assert gone(after) - gone(before) >= CLIENTS / 2

    assert httpx2.post(f"{holding_server.address}/v1/classify", content=clock_jpeg).status_code == 200


@pytest.fixture
def now(holding_server: Any, metric_sum: Callable[..., float]) -> Callable[..., float]:
    """A metric of the service, by name and labels."""

    def read(name: str, **labels: str) -> float:
        sleep(0.02)
        return metric_sum(httpx2.get(f"{holding_server.address}/metrics").text, name, **labels)

    return read


def test_images_of_a_client_that_disconnects_after_admission_are_cancelled(
    holding_server: Any, clock_jpeg: bytes, now: Callable[..., float]
) -> None:
    holding_server.process.send_signal(signal.SIGUSR1)
    cancelled_before = now("gradless_images_total", outcome="cancelled")
    files = [("images", (f"{number}.jpg", clock_jpeg, "image/jpeg")) for number in range(64)]
    request = httpx2.Request("POST", f"{holding_server.address}/v1/classify", files=files)
    body = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with holding_server.connect() as connection:
        connection.sendall(f"POST /v1/classify HTTP/1.1\r\n{head}\r\n".encode() + body)
        while now("gradless_in_flight_images") < len(files):
            pass
    while now("gradless_in_flight_images"):
        pass
    holding_server.process.send_signal(signal.SIGUSR2)
    assert now("gradless_images_total", outcome="cancelled") - cancelled_before == len(files)


def test_pipelined_requests_of_disconnected_clients_leave_no_image_in_flight(
    holding_server: Any, clock_jpeg: bytes, now: Callable[..., float]
) -> None:
    late_before = now("gradless_images_total", outcome="late")
    request = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(clock_jpeg)}\r\n\r\n".encode()
    # So many that the server reads no further data, so it does not see the end of the connection.
    row = (request + clock_jpeg) * (1 + 180_000 // len(clock_jpeg))
    for _ in range(20):
        with holding_server.connect() as connection:
            connection.sendall(row)
    while now("gradless_in_flight_images"):
        pass
    # Not given up by a deadline.
    assert now("gradless_images_total", outcome="late") == late_before


def test_a_client_that_disconnects_during_its_body_to_the_lens_is_not_an_internal_error(
    server: Any, metric_sum: Callable[..., float]
) -> None:
    def count(**labels: str) -> float:
        exposition = httpx2.get(f"{server.address}/metrics").text
        return metric_sum(exposition, "gradless_requests_total", route="/debug/grad-modes", **labels)

    before, failed_before = count(), count(code="500")
    with server.connect() as connection:
        connection.sendall(b"POST /debug/grad-modes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
    while count() == before:
        sleep(0.02)
    assert count(code="500") == failed_before


def test_a_disconnected_client_frees_the_lens_for_the_next_comparison(server: Any) -> None:
    url = f"{server.address}/debug/grad-modes"
    long, short = {"batch_size": 1, "iterations": 50}, {"batch_size": 1, "iterations": 1, "arms": ["no_grad"]}
    with httpx2.stream("POST", url, json=long, headers={"Accept": "text/event-stream"}, timeout=60) as stream:
        assert next(stream.iter_lines()) == "event: progress"
        assert httpx2.post(url, json=short, timeout=60).status_code == 409
    # Its forward ends first; the test's own timeout is the deadline.
    while (answer := httpx2.post(url, json=short, timeout=60)).status_code == 409:
        sleep(0.02)
    assert answer.json()["iterations"] == 1
