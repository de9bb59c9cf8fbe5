"""Data before a request is complete: endless heads, missing heads, bytes that are not HTTP, many idle connections."""

from __future__ import annotations

import json
import resource
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

ReadAnswer = Callable[..., Any]

# The soft limit of open files on many systems, and a larger number of connections.
FEW = 1024
MANY = 1500


def problem_of(answer: Any) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    body = json.loads(answer.body)
    assert body["status"] == answer.status
    return answer.status, body["type"].removeprefix("urn:gradless:problem:")


def send_until_answered(connection: socket.socket, piece: bytes, most: int = 2**24) -> None:
    for _ in range(most // len(piece)):
        answered, _, _ = select.select([connection], [], [], 0)
        if answered:
            return
        try:
            connection.sendall(piece)
        except ConnectionError:
            return
    pytest.fail(f"{most} bytes were taken without a word")


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET /healthz HTTP/1.1\r\n", b"X-More: and more\r\n" * 100),
        (b"GET /healthz HTTP/1.1\r\nX-Long: ", b"x" * 2000),
        (b"GET /", b"x" * 2000),
    ],
    ids=["headers without end", "one header without end", "a path without end"],
)
def test_an_endless_head_is_refused_with_431(server: Any, read_answer: ReadAnswer, head: bytes, piece: bytes) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head)
        send_until_answered(connection, piece)
        assert problem_of(read_answer(file)) == (431, "headers-too-large")


def test_bytes_that_are_not_http_get_a_problem_with_a_request_id(server: Any, read_answer: ReadAnswer) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"\x16\x03\x01 is how TLS begins\r\n\r\n")
        answer = read_answer(file)
        assert problem_of(answer) == (400, "malformed-request")
        assert json.loads(answer.body)["request_id"] == answer.headers["x-request-id"]
        assert file.read() == b""


def test_many_large_requests_on_one_connection_do_not_count_as_a_large_head(server: Any, clock_jpeg: bytes) -> None:
    with httpx2.Client(base_url=server.address, timeout=60) as client:
        for _ in range(4):
            # Multipart, so that the end of one body and the next head come in odd chunks.
            answer = client.post("/v1/classify", files=[("images", ("a.jpg", clock_jpeg))] * 8)
            assert answer.status_code == 200


@pytest.fixture
def few_files() -> Iterator[None]:
    """A process that is started now may open as few files as many systems allow at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MANY + FEW:
        pytest.skip(f"this process may open {soft} files only: too few for the clients")
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_silent_connections_do_not_keep_other_clients_out(
    few_files: None, start_server: Callable[..., Any], clock_jpeg: bytes
) -> None:
    del few_files
    server = start_server(GRADLESS_MODELS="null")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * MANY, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with ExitStack() as waiting:
        for number in range(MANY):
            connection = waiting.enter_context(server.connect())
            if number % 2:
                connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n")
        answer = httpx2.post(f"{server.address}/v1/classify", content=clock_jpeg, timeout=30)
        assert answer.status_code == 200
