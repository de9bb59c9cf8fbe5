"""A server with a short GRADLESS_READ_TIMEOUT_S disconnects slow clients, whatever they are slow at."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic, sleep
from typing import Any

import httpx2
import psutil
import pytest

ReadAnswer = Callable[..., Any]

# Long enough for a client of this test that is stopped for a while.
LIMIT_S = 3
PATIENCE_S = 60

# More than the kernel keeps of a connection.
ENOUGH_BYTES = 2**24

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def impatient(warm_command: Any, serving: Callable[..., Any]) -> Iterator[Any]:
    """A server with a short time limit, and without the lens."""
    settings = {
        "GRADLESS_MODELS": "null",
        "GRADLESS_READ_TIMEOUT_S": str(LIMIT_S),
        "GRADLESS_DEBUG_ENDPOINTS": "false",
        "GRADLESS_LOG_FORMAT": "console",
    }
    with serving(warm_command.start, **settings) as running:
        yield running


def problem_of(answer: Any) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    return answer.status, json.loads(answer.body)["type"].removeprefix("urn:gradless:problem:")


def test_slow_heads_and_bodies_are_refused_with_408_and_silent_clients_without_a_word(
    impatient: Any, read_answer: ReadAnswer, metric_sum: Callable[..., float]
) -> None:
    def counts() -> list[float]:
        exposition = httpx2.get(f"{impatient.address}/metrics").text
        return [
            metric_sum(exposition, "gradless_requests_total", route="/v1/classify", code="499"),
            metric_sum(exposition, "gradless_rejected_total", reason="slow_body"),
            metric_sum(exposition, "gradless_requests_total", route="/v1/classify", code="408"),
            metric_sum(exposition, "gradless_requests_total", route="other", method="other", code="408"),
            metric_sum(exposition, "gradless_requests_total", route="other"),
        ]

    before = counts()
    with ExitStack() as closing:

        def connect() -> tuple[socket.socket, Any]:
            connection = closing.enter_context(impatient.connect())
            return connection, closing.enter_context(connection.makefile("rb"))

        idle, answers_to_idle = connect()
        idle.sendall(GET)
        assert read_answer(answers_to_idle).status == 200

        # They wait for their time limits together.
        slow_head, answers_to_head = connect()
        slow_head.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: gradl")
        slow_body, answers_to_body = connect()
        slow_body.sendall(POST + b"Content-Length: 100\r\n\r\nslow")
        _, answers_to_silence = connect()
        for answers in (answers_to_head, answers_to_body):
            assert problem_of(read_answer(answers)) == (408, "slow-body")
            assert answers.read() == b""
        assert answers_to_silence.read() == b""

        # An answered connection may be idle for longer; an incomplete next request has the time limit.
        rested, _, _ = select.select([idle], [], [], 1)
        assert not rested
        idle.sendall(GET)
        assert read_answer(answers_to_idle).status == 200
        idle.sendall(b"GET /heal")
        assert problem_of(read_answer(answers_to_idle)) == (408, "slow-body")

        # A body that is not HTTP belongs to a request, which counts as disconnected.
        malformed, answers = connect()
        malformed.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n")
        assert problem_of(read_answer(answers)) == (400, "malformed-request")

    # It is counted at its end, which the client cannot observe.
    while (after := counts())[0] == before[0]:
        sleep(0.02)
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 3, 1, 2, 2]


def test_a_client_that_does_not_read_its_answers_is_disconnected(impatient: Any) -> None:
    process = psutil.Process(impatient.process.pid)
    request = b"GET /samples/clock.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n"
    sample = httpx2.get(f"{impatient.address}/samples/clock.jpg").content
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((impatient.host, impatient.port))
        connection.sendall(request * (ENOUGH_BYTES // len(sample)))
        port = connection.getsockname()[1]
        deadline = monotonic() + PATIENCE_S
        while any(to.raddr and to.raddr.port == port for to in process.net_connections("tcp")):
            assert monotonic() < deadline, "an unread answer is still kept"
            sleep(0.1)


def test_a_client_that_keeps_sending_after_its_refusal_is_disconnected(impatient: Any, read_answer: ReadAnswer) -> None:
    with impatient.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n")
        assert read_answer(file).status == 404
        assert file.read() == b""
        deadline = monotonic() + PATIENCE_S
        with pytest.raises(ConnectionError):  # noqa: PT012 - any of the writes may fail
            while monotonic() < deadline:
                connection.sendall(b"x")
                sleep(0.01)


def test_without_debug_endpoints_there_is_no_lens_and_no_mention_of_it(impatient: Any) -> None:
    lens = httpx2.post(f"{impatient.address}/debug/grad-modes?batch_size=1&iterations=1")
    assert lens.status_code == 404
    assert lens.json()["type"] == "urn:gradless:problem:debug-disabled"
    assert not any("curl" in line and "grad-modes" in line for line in impatient.log)
