"""Endless and too large request bodies are refused."""

from __future__ import annotations

import json
import select
from collections.abc import Callable
from typing import Any

import pytest

ReadAnswer = Callable[..., Any]

CHUNK = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
# MiB after which the test fails: far beyond the limit of every route.
MAX_CHUNKS = 256


def send_chunks_until_answered(connection: Any, target: str) -> None:
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head.encode())
    for _ in range(MAX_CHUNKS):
        answered, _, _ = select.select([connection], [], [], 0)
        if answered:
            return
        try:
            connection.sendall(CHUNK)
        except ConnectionError:
            return
    pytest.fail(f"{target} read {MAX_CHUNKS} MiB without a response")


def send_repeatedly(connection: Any, piece: bytes) -> None:
    for _ in range(MAX_CHUNKS * len(CHUNK) // len(piece)):
        connection.sendall(piece)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
def test_an_endless_body_is_refused_with_413(server: Any, read_answer: ReadAnswer, path: str) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        send_chunks_until_answered(connection, path)
        answer = read_answer(file)
    assert answer.status == 413
    assert answer.headers["connection"] == "close"
    assert json.loads(answer.body)["status"] == 413


def test_the_lens_does_not_read_an_endless_body(server: Any, read_answer: ReadAnswer) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        send_chunks_until_answered(connection, "/debug/grad-modes?batch_size=1&iterations=1")
        # The route needs no body, so it may also answer without reading it.
        assert read_answer(file).status in {200, 413}


def test_endless_trailers_are_refused_although_the_handler_reads_no_body(server: Any, read_answer: ReadAnswer) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        assert read_answer(file).status == 200
        with pytest.raises(ConnectionError):
            send_repeatedly(connection, b"a:\r\n" * 2000)


def test_a_content_length_over_the_limit_is_refused_before_the_body(server: Any, read_answer: ReadAnswer) -> None:
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        answer = read_answer(file)
        assert file.read() == b""
    assert answer.status == 413
    assert json.loads(answer.body)["type"] == "urn:gradless:problem:body-too-large"
