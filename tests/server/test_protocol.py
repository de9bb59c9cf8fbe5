"""HTTP/1.1 byte by byte against a real server: pipelining, Expect, upgrades, host checks, keep-alive after errors."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

ReadAnswer = Callable[..., Any]


def request(body: bytes, *headers: str, target: str = "/v1/classify") -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def test_two_pipelined_requests_are_answered_in_order(server: Any, clock_jpeg: bytes, read_answer: ReadAnswer) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(
            request(clock_jpeg, target="/v1/classify?top_k=1") + request(clock_jpeg, target="/v1/classify?top_k=2")
        )
        answers = [read_answer(file), read_answer(file)]
    assert [answer.status for answer in answers] == [200, 200]
    assert [len(json.loads(answer.body)["results"][0]["predictions"]) for answer in answers] == [1, 2]


def test_header_names_in_lower_case_are_accepted(server: Any, clock_jpeg: bytes, read_answer: ReadAnswer) -> None:
    head = f"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(clock_jpeg)}\r\n\r\n"
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head.encode() + clock_jpeg)
        assert read_answer(file).status == 200


@pytest.mark.parametrize("method", ["HEAD", "PUT", "GET", "DELETE", "PATCH"])
def test_an_unsupported_method_is_answered_with_405_and_the_allowed_method(server: Any, method: str) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    connection.request(method, "/v1/classify")
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert response.headers["Content-Type"] == "application/problem+json"
    # A response to HEAD has no body.
    assert method == "HEAD" or json.loads(body)["type"] == "urn:gradless:problem:method-not-allowed"


def test_a_websocket_upgrade_is_ignored_although_a_websocket_library_is_installed(
    server: Any, read_answer: ReadAnswer
) -> None:
    assert find_spec("websockets")
    upgrade = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: " + "A" * 22,
    ]
    head = "\r\n".join(["GET /healthz HTTP/1.1", "Host: localhost", *upgrade, "", ""])
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head.encode())
        assert read_answer(file).status == 200


H2C = ["Connection: keep-alive, Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]


def test_http_2_upgrade_requests_and_later_requests_are_answered_over_http_1_1(
    server: Any, clock_jpeg: bytes, read_answer: ReadAnswer
) -> None:
    upgrade = request(clock_jpeg, *H2C)
    chunked = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    chunked += "\r\n".join([*H2C, "", ""]).encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(clock_jpeg), clock_jpeg)
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(upgrade + upgrade + chunked)
        answers = [read_answer(file) for _ in range(3)]
        head, _, body = upgrade.partition(b"\r\n\r\n")
        for piece in (head[:50], head[50:], b"\r\n\r\n", body[:5000], body[5000:]):
            connection.sendall(piece)
        answers.append(read_answer(file))
    assert [answer.status for answer in answers] == [200] * 4
    labels = {json.loads(answer.body)["results"][0]["predictions"][0]["label"] for answer in answers}
    assert labels == {"analog clock"}


@pytest.mark.parametrize("good", [1, 3])
def test_malformed_data_behind_requests_ends_the_connection_after_their_responses(
    server: Any, clock_jpeg: bytes, read_answer: ReadAnswer, good: int
) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(request(clock_jpeg) * good + b"garbage\r\n\r\n")
        assert [read_answer(file).status for _ in range(good)] == [200] * good
        assert file.read() == b""


@pytest.mark.parametrize(
    "line",
    [
        "CONNECT localhost:80",
        "CONNECT http://localhost/healthz",
        "GET http://localhost:99999/healthz",
        "GET http://[::1",
    ],
)
@pytest.mark.parametrize("before", [0, 1], ids=["first request", "second request"])
def test_an_invalid_target_is_a_malformed_request(server: Any, read_answer: ReadAnswer, line: str, before: int) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        for _ in range(before):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert read_answer(file).status == 200
        connection.sendall(f"{line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = read_answer(file)
        assert answer.status == 400
        assert json.loads(answer.body)["type"] == "urn:gradless:problem:malformed-request"
        assert file.read() == b""


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nhost: elsewhere.example",
        "GET /healthz HTTP/1.1\r\nAccept: */*",
        "GET /v1/models HTTP/1.1\r\nHost: user@localhost",
        "GET /v1/models HTTP/1.1\r\nHost: user:secret@localhost:80",
        "GET /v1/models HTTP/1.1\r\nHost: [::1]evil",
        "GET /v1/models HTTP/1.1\r\nHost: ::1",
        "GET /v1/models HTTP/1.1\r\nHost: localhost:80x",
        "GET /v1/models HTTP/1.1\r\nHost: localhost/evil",
        "GET /v1/models HTTP/1.1\r\nHost: localhost, elsewhere.example",
        "GET http://elsewhere.example/healthz HTTP/1.1\r\nHost: localhost",
        "GET http://user@localhost/healthz HTTP/1.1\r\nHost: localhost",
        "GET http://localhost:81/healthz HTTP/1.1\r\nHost: localhost",
        "GET http://localhost/healthz HTTP/1.0",
        "GET ftp://localhost/healthz HTTP/1.1\r\nHost: localhost",
        "GET ws://localhost/healthz HTTP/1.1\r\nHost: localhost",
    ],
)
def test_a_request_with_an_ambiguous_or_invalid_host_is_malformed(
    server: Any, read_answer: ReadAnswer, head: str
) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(f"{head}\r\n\r\n".encode())
        answer = read_answer(file)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert json.loads(answer.body)["type"] == "urn:gradless:problem:malformed-request"
        assert file.read() == b""


@pytest.mark.parametrize(
    "head",
    [
        "GET http://localhost/healthz HTTP/1.1\r\nHost: localhost",
        "GET HTTP://LOCALHOST:80/healthz HTTP/1.1\r\nHost: localhost",
        "GET https://localhost/healthz HTTP/1.1\r\nHost: localhost:443",
        "GET /healthz HTTP/1.1\r\nHost: [::1]:8000",
        "GET /v1/models HTTP/1.1\r\nHost: localhost \t ",
        "GET /healthz HTTP/1.0",
    ],
)
def test_absolute_targets_and_host_addresses_are_accepted(server: Any, read_answer: ReadAnswer, head: str) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(f"{head}\r\n\r\n".encode())
        assert read_answer(file).status == 200


def test_a_hundred_pipelined_http_2_upgrade_requests_are_answered(server: Any, read_answer: ReadAnswer) -> None:
    head = "\r\n".join(["GET /healthz HTTP/1.1", "Host: localhost", *H2C, "", ""])
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head.encode() * 100)
        assert {read_answer(file).status for _ in range(100)} == {200}


@pytest.mark.parametrize("good", [1, 3])
def test_a_malformed_body_behind_requests_is_refused_after_their_responses(
    server: Any, clock_jpeg: bytes, read_answer: ReadAnswer, good: int
) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: mine\r\n"
    broken = head + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n"
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(request(clock_jpeg) * good + broken)
        assert [read_answer(file).status for _ in range(good)] == [200] * good
        refusal = read_answer(file)
        assert (refusal.status, refusal.headers["connection"]) == (400, "close")
        assert json.loads(refusal.body)["type"] == "urn:gradless:problem:malformed-request"
        assert json.loads(refusal.body)["request_id"] == refusal.headers["x-request-id"] == "mine"
        assert file.read() == b""


@pytest.mark.parametrize(
    "head", ["GET /healthz?{} HTTP/1.1", "GET /healthz HTTP/1.1\r\nX: {}"], ids=["target", "field"]
)
def test_a_head_over_32_kib_in_a_single_write_is_refused(server: Any, read_answer: ReadAnswer, head: str) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(f"{head.format('a' * 33_000)}\r\nHost: localhost\r\n\r\n".encode())
        answer = read_answer(file)
    assert answer.status == 431
    assert json.loads(answer.body)["type"] == "urn:gradless:problem:headers-too-large"


def test_a_client_that_expects_100_continue_receives_it(
    server: Any, clock_jpeg: bytes, read_answer: ReadAnswer
) -> None:
    head, _, _ = request(clock_jpeg, "Expect: 100-continue").partition(b"\r\n\r\n")
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head + b"\r\n\r\n")
        assert read_answer(file).status == 100
        connection.sendall(clock_jpeg)
        assert read_answer(file).status == 200


def test_a_too_large_body_with_expect_100_continue_is_refused_before_it_is_sent(
    server: Any, read_answer: ReadAnswer
) -> None:
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**40}\r\nExpect: 100-continue\r\n\r\n"
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head.encode())
        assert read_answer(file).status == 413


@pytest.mark.parametrize(
    ("target", "headers", "body", "status"),
    [
        ("/v1/classify", {}, b"no image", 415),
        ("/v1/classify", {}, b"", 422),
        ("/v1/classify?top_k=0", {}, b"no image", 422),
        ("/v1/classify?model=none", {}, b"no image", 404),
        ("/v1/classify", {"Content-Type": "multipart/form-data"}, b"no boundary", 400),
        ("/nowhere", {}, b"no image", 404),
    ],
)
def test_a_connection_stays_open_after_an_error_if_the_body_was_sent_completely(
    server: Any, clock_jpeg: bytes, target: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    connection.request("POST", target, body, headers)
    response = connection.getresponse()
    response.read()
    assert response.status == status
    socket_of_the_error = connection.sock
    connection.request("POST", "/v1/classify", clock_jpeg)
    response = connection.getresponse()
    response.read()
    assert response.status == 200
    assert connection.sock is socket_of_the_error
    assert socket_of_the_error is not None
    connection.close()
