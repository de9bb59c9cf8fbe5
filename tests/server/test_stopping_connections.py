"""No connection is reset while the service stops or has no file descriptors left: each gets its response."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import pytest

_CLIENTS = 24
_REFUSED = "refused"


class _Clients:
    """Clients that send one request per connection, and read its response, until a connection is refused."""

    def __init__(self, host: str, port: int, image: bytes, clients: int = _CLIENTS) -> None:
        self._address = host, port
        head = (
            f"POST /v1/classify HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(image)}\r\n\r\n"
        )
        self._request = head.encode() + image
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        outcome = ""
        while outcome != _REFUSED:
            outcome = self._request_once()
            self.outcomes[outcome] += 1

    def _request_once(self) -> str:
        try:
            connection = socket.create_connection(self._address, timeout=60)
        except ConnectionRefusedError:
            return _REFUSED
        with connection:
            try:
                connection.sendall(self._request)
                answer = b""
                while piece := connection.recv(65536):
                    answer += piece
            except OSError as error:
                return type(error).__name__
        return answer[9:12].decode() or "closed without a response"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stopping_service_responds_on_every_connection_that_was_made(
    start_server: Callable[..., Any], clock_jpeg: bytes, workers: str
) -> None:
    outcomes: Counter[str] = Counter()
    for _ in range(2):
        server = start_server(GRADLESS_HTTP_WORKERS=workers, GRADLESS_MODELS="null")
        clients = _Clients(server.host, server.port, clock_jpeg)
        deadline = monotonic() + 60
        while clients.outcomes["200"] < 200:
            assert monotonic() < deadline
            sleep(0.01)
        server.process.terminate()
        assert server.exit_status() == 0
        clients.join()
        outcomes += clients.outcomes

    assert set(outcomes) <= {"200", "503", _REFUSED}, outcomes


@pytest.mark.parametrize("workers", ["0", "2"])
def test_connections_wait_for_file_descriptors_and_one_line_is_logged(
    start_patched: Callable[..., Any], clock_jpeg: bytes, workers: str
) -> None:
    server = start_patched(workers, "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))")
    connections = [server.connect() for _ in range(200)]
    server.wait_for_line("ulimit -n")
    # Several times the delay between attempts.
    sleep(3)
    request = f"POST /v1/classify HTTP/1.1\r\nHost: {server.host}\r\nConnection: close\r\n"
    request += f"Content-Length: {len(clock_jpeg)}\r\n\r\n"
    for connection in connections:
        connection.sendall(request.encode() + clock_jpeg)
    statuses = Counter(connection.recv(12)[9:].decode() for connection in connections)
    for connection in connections:
        connection.close()

    # Open connections are answered and closed; then the waiting ones are accepted.
    assert set(statuses) <= {"200", "503", "429"}, statuses
    server.process.terminate()
    assert server.exit_status() == 0
    server.end_of_output()
    lines = [line for line in server.log if re.search("ulimit -n|Too many open files", line)]
    assert len(lines) == 1, lines
