"""Draining: accepted requests are answered, later ones are refused, and the exit status is 0."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import sleep
from typing import Any

import httpx2
import pytest

MULTIPART = list[tuple[str, tuple[str, bytes, str]]]


@pytest.fixture
def many_images(clock_jpeg: bytes) -> MULTIPART:
    """The maximum number of images in one request."""
    return [("images", (f"{index}.jpg", clock_jpeg, "image/jpeg")) for index in range(64)]


def test_a_request_sent_at_the_first_moment_is_answered_if_sigterm_follows_at_once(
    start_patched: Callable[..., Any], clock_png: bytes
) -> None:
    # The start of HTTP workers, which are forks of forks of this process, lasts on when they know the models.
    server = start_patched(2, "import time, app.main; app.main.freeze_loaded_objects = lambda: time.sleep(2)")
    with contextlib.closing(http.client.HTTPConnection(server.host, server.port, timeout=60)) as connection:
        connection.request("POST", "/v1/classify", clock_png)
        server.process.send_signal(signal.SIGTERM)
        assert connection.getresponse().status in {200, 503}
    assert server.exit_status() == 0


def test_a_sigterm_when_the_models_are_there_waits_for_the_end_of_the_start_and_drains(
    start_patched: Callable[..., Any],
) -> None:
    terminate = "(signal.raise_signal(signal.SIGTERM), time.sleep(2))"
    server = start_patched(0, f"import time, app.main; app.main.freeze_loaded_objects = lambda: {terminate}")
    server.wait_for_line("Application shutdown complete")
    assert server.exit_status() == 0


def wait_until_admitted(server: Any, images: int, metric_sum: Callable[..., float]) -> None:
    """Wait until this number of images is in flight; the test's own timeout is the deadline."""
    while metric_sum(httpx2.get(f"{server.address}/metrics").text, "gradless_in_flight_images") < images:
        sleep(0.02)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_draining_server_answers_accepted_requests_and_exits_with_status_0(
    start_holding: Callable[..., Any],
    metric_sum: Callable[..., float],
    many_images: MULTIPART,
    clock_png: bytes,
    ending: signal.Signals,
) -> None:
    server = start_holding()
    server.process.send_signal(signal.SIGUSR1)
    late = http.client.HTTPConnection(server.host, server.port, timeout=60)
    late.request("GET", "/healthz")
    late.getresponse().read()
    with ThreadPoolExecutor(2) as clients:
        accepted = [
            clients.submit(httpx2.post, f"{server.address}/v1/classify", files=many_images, timeout=60)
            for _ in range(2)
        ]
        wait_until_admitted(server, 2 * 64, metric_sum)

        server.process.send_signal(ending)
        server.wait_for_line("answering what was accepted")
        # On an open connection and on a new one: 503, or the connection is refused.
        assert status_of(late, clock_png) in {503, None}
        assert status_of(http.client.HTTPConnection(server.host, server.port, timeout=60), clock_png) in {503, None}

        server.process.send_signal(signal.SIGUSR2)
        answers = [request.result() for request in accepted]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all(len(answer.json()["results"]) == 64 for answer in answers)
    assert server.exit_status() == 0


def status_of(connection: http.client.HTTPConnection, image: bytes) -> int | None:
    """Return the status, or None if the connection is refused or closed."""
    try:
        connection.request("POST", "/v1/classify", image)
        response = connection.getresponse()
        if response.status == 503:
            assert response.headers["Content-Type"] == "application/problem+json"
            assert b"urn:gradless:problem:draining" in response.read()
    except (ConnectionError, http.client.RemoteDisconnected):
        return None
    finally:
        connection.close()
    return response.status


def test_a_slow_reader_receives_its_complete_response_from_a_draining_server(
    start_holding: Callable[..., Any],
    metric_sum: Callable[..., float],
    many_images: MULTIPART,
    read_answer: Callable[..., Any],
) -> None:
    server = start_holding()
    server.process.send_signal(signal.SIGUSR1)
    request = httpx2.Request("POST", f"{server.address}/v1/classify?top_k=1000", files=many_images)
    body = request.read()
    with server.connect() as connection, connection.makefile("rb", buffering=1024) as file:
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        connection.sendall(f"POST /v1/classify?top_k=1000 HTTP/1.1\r\n{head}\r\n".encode() + body)
        wait_until_admitted(server, 64, metric_sum)
        server.process.terminate()
        server.process.send_signal(signal.SIGUSR2)
        # Read nothing until the server waits only for its clients.
        server.wait_for_line("Waiting for connections to close")
        answer = read_answer(file)
    assert answer.status == 200
    assert answer.body.count(b'"label"') == 64 * 1000
    assert server.exit_status() == 0


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sighup_to_the_process_group_drains_the_service_with_status_0(
    start_session: Callable[..., Any], clock_png: bytes, workers: str
) -> None:
    # A closing terminal signals every process of the group, also those that the service has started.
    server = start_session(GRADLESS_MODELS="null", GRADLESS_HTTP_WORKERS=workers)
    httpx2.post(f"{server.address}/v1/classify", content=clock_png, timeout=60).raise_for_status()
    os.killpg(server.process.pid, signal.SIGHUP)
    server.wait_for_line("SIGHUP: answering what was accepted, then stopping")

    assert server.exit_status() == 0


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_service_under_nohup_ignores_sighup(
    start_session: Callable[..., Any], clock_png: bytes, workers: str
) -> None:
    server = start_session(signal.SIGHUP, GRADLESS_MODELS="null", GRADLESS_HTTP_WORKERS=workers)
    os.killpg(server.process.pid, signal.SIGHUP)
    for _ in range(20):
        httpx2.post(f"{server.address}/v1/classify", content=clock_png, timeout=60).raise_for_status()
    server.process.terminate()

    assert server.exit_status() == 0
    assert not any("SIGHUP" in line for line in server.log)
