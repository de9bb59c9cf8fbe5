"""A log that cannot be written only loses lines: requests are answered, and SIGTERM ends the service."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx2
import pytest

_PATIENCE_S = 60
_START_TIMEOUT_S = 180
# More requests than a pipe can hold log lines.
_MANY_REQUESTS = 400
_WORKERS = ["0", "2"]

Serve = Callable[..., Any]
Dropped = Callable[[str], dict[str, float]]


class _Service:
    def __init__(self, process: Any, port: int) -> None:
        self.process = process
        self.port = port
        self.address = f"http://127.0.0.1:{port}"

    def wait_until_ready(self) -> None:
        """Poll /readyz, because the log cannot be read."""
        deadline = monotonic() + _START_TIMEOUT_S
        while not self._ready():
            assert monotonic() < deadline
            assert self.process.poll() is None
            sleep(0.1)

    def _ready(self) -> bool:
        try:
            return httpx2.get(f"{self.address}/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def status_after_sigterm(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status: int = self.process.wait(_PATIENCE_S)
        return status


@pytest.fixture(params=_WORKERS, ids=["one process", "two workers"])
def settings(
    request: pytest.FixtureRequest, server_environment: Callable[..., dict[str, str]], unused_port: int
) -> dict[str, str]:
    return server_environment(
        GRADLESS_MODELS="null",
        GRADLESS_HTTP_WORKERS=request.param,
        GRADLESS_PORT=str(unused_port),
        GRADLESS_LOG_FORMAT="json",
    )


@pytest.fixture
def serve(settings: dict[str, str], warm_command: Any, gradless_path: Path) -> Iterator[Serve]:
    """Start a service that logs to a file, and wait until it is ready."""
    with ExitStack() as ending:

        def start(log: Any) -> _Service:
            process = warm_command.start([gradless_path, "serve"], settings, log)
            return ending.enter_context(_served(process, settings))

        yield start


@contextmanager
def _served(process: Any, settings: dict[str, str]) -> Iterator[_Service]:
    service = _Service(process, int(settings["GRADLESS_PORT"]))
    with process:
        try:
            service.wait_until_ready()
            yield service
        finally:
            process.kill()


@pytest.fixture
def dropped(metric_sum: Callable[..., float]) -> Dropped:
    def by_reason(address: str) -> dict[str, float]:
        exposition = httpx2.get(f"{address}/metrics").text
        return {
            reason: metric_sum(exposition, "gradless_log_lines_dropped_total", reason=reason)
            for reason in ("full", "error")
        }

    return by_reason


def _statuses(service: _Service, image: bytes, requests: int) -> set[int]:
    with httpx2.Client(base_url=service.address, timeout=_PATIENCE_S) as client:
        return {client.post("/v1/classify", content=image).status_code for _ in range(requests)}


def test_lines_are_dropped_and_counted_after_the_reader_closes_the_pipe(
    serve: Serve, dropped: Dropped, clock_jpeg: bytes
) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb") as log:
        service = serve(log)
    os.close(read)

    assert _statuses(service, clock_jpeg, 20) == {200}
    # Lines are written, and counted, after the responses.
    while dropped(service.address)["error"] < 10:
        sleep(0.02)
    assert service.status_after_sigterm() == 0


def test_lines_are_dropped_and_counted_on_a_full_disk(serve: Serve, dropped: Dropped, clock_jpeg: bytes) -> None:
    with Path("/dev/full").open("wb") as log:
        service = serve(log)

    assert _statuses(service, clock_jpeg, 20) == {200}
    # Lines are written, and counted, after the responses.
    while dropped(service.address)["error"] < 10:
        sleep(0.02)
    assert service.status_after_sigterm() == 0


@pytest.mark.parametrize("settings", ["0"], indirect=True, ids=["one process"])
def test_a_service_started_with_closed_streams_opens_dev_null_in_their_place(
    settings: dict[str, str], gradless_path: Path, clock_jpeg: bytes
) -> None:
    command = ["sh", "-c", 'exec "$0" serve <&- >&- 2>&-', str(gradless_path)]
    with _served(subprocess.Popen(command, env=settings), settings) as service:
        assert _statuses(service, clock_jpeg, 20) == {200}
        opened = [Path(f"/proc/{service.process.pid}/fd/{number}").readlink() for number in range(3)]
        assert opened == [Path(os.devnull)] * 3
        assert service.status_after_sigterm() == 0


def test_a_stalled_reader_delays_no_response_and_later_reads_how_many_lines_were_dropped(
    serve: Serve, dropped: Dropped, clock_jpeg: bytes
) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb") as log:
        service = serve(log)

    assert _statuses(service, clock_jpeg, _MANY_REQUESTS) == {200}
    request = b"GET /not-there HTTP/1.1\r\nHost: localhost\r\n\r\n"
    # One connection, so that the queue of one process becomes full.
    with socket.create_connection(("127.0.0.1", service.port), timeout=_PATIENCE_S) as connection:
        while not dropped(service.address)["full"]:
            connection.sendall(request * 100)
            answers = b""
            while answers.count(b"HTTP/1.1 404") < 100:
                answers += connection.recv(1 << 16)
    text = b""
    while b'"log lines were dropped"' not in text:
        text += os.read(read, 1 << 16)
    os.close(read)

    assert service.status_after_sigterm() == 0


def test_a_service_whose_log_is_a_full_pipe_ends_on_sigterm(serve: Serve, clock_jpeg: bytes) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb") as log:
        service = serve(log)
    assert _statuses(service, clock_jpeg, _MANY_REQUESTS) == {200}

    assert service.status_after_sigterm() == 0
    os.close(read)


@pytest.mark.parametrize(
    ("setting", "value", "status"), [("GRADLESS_PORT", "x", 2), ("GRADLESS_MODELS", "resnet51", 3)]
)
def test_the_exit_status_of_a_failed_start_does_not_depend_on_the_log(
    warm_command: Any,
    gradless_path: Path,
    server_environment: Callable[..., dict[str, str]],
    setting: str,
    value: str,
    status: int,
) -> None:
    with Path("/dev/full").open("wb") as log:
        process = warm_command.start([gradless_path, "serve"], server_environment(**{setting: value}), log)
    with process:
        assert process.wait(_PATIENCE_S) == status
