"""Chunk extensions, trailers and chunk sizes of a body are limited, whether or not a handler reads the body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn.server import ServerState

pytestmark = pytest.mark.anyio

Listen = Callable[..., AbstractAsyncContextManager[tuple[ServerState, Any]]]

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], AbstractAsyncContextManager[Connection]]

ENDLESS_BYTES = 2**22
PATIENCE_S = 60


async def say_here(_: Request) -> PlainTextResponse:
    return PlainTextResponse("here")


async def count(request: Request) -> PlainTextResponse:
    body = await request.body()
    return PlainTextResponse(f"{len(body)} bytes, trailing {request.headers.get('x-trailing')}")


@pytest.fixture
def refusals() -> list[str]:
    return []


@pytest.fixture
async def connect(listen: Listen, refusals: list[str]) -> AsyncIterator[Connect]:
    """Connect to a server on this event loop with a head timeout of half a second and a keep-alive timeout of 3 s."""
    routes = [Route("/", say_here, methods=["GET", "POST"]), Route("/count", count, methods=["POST"])]
    app, refused = Starlette(routes=routes), lambda row, _seconds: refusals.append(str(row.reason))
    async with listen(app, 0.5, refused, timeout_keep_alive=3) as (_, address):

        @asynccontextmanager
        async def connected() -> AsyncIterator[Connection]:
            reader, writer = await asyncio.open_connection(*address)
            try:
                yield reader, writer
            finally:
                writer.close()

        yield connected


def head(path: str, framing: str, method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: here\r\n{framing}\r\n\r\n".encode()


def chunked(path: str, method: str = "POST") -> bytes:
    return head(path, "transfer-encoding: chunked", method)


async def send_until_closed(writer: asyncio.StreamWriter, piece: bytes, pause_s: float = 0) -> int:
    """Send until the server closes the connection; return the number of bytes sent."""
    sent = 0
    while sent < ENDLESS_BYTES:
        writer.write(piece)
        sent += len(piece)
        try:
            await writer.drain()
        except ConnectionError:
            return sent
        await asyncio.sleep(pause_s)
        if writer.transport.is_closing():
            return sent
    pytest.fail(f"{sent} bytes were read without a response")


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length"))
    return int(lines[0].split()[1]), await reader.readexactly(length)


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"0\r\n", b"a:\r\n" * 100),
        (b"0\r\na: ", b"x" * 400),
        (b"5;", b"x" * 400),
    ],
    ids=["trailers", "one long trailer", "a chunk extension"],
)
async def test_the_size_of_trailers_and_extensions_is_limited_after_the_response(
    connect: Connect, begin: bytes, piece: bytes
) -> None:
    async with connect() as (reader, writer):
        writer.write(chunked("/", "GET") + begin)
        assert (await answer(reader))[0] == 200
        assert await send_until_closed(writer, piece) < 2**20
        # No second response, which the client would read as the response to its next request.
        assert not reader._buffer  # type: ignore[attr-defined]  # noqa: SLF001 - received, unread data


async def test_too_large_trailers_are_refused_while_the_body_is_read(connect: Connect, refusals: list[str]) -> None:
    async with connect() as (reader, writer):
        writer.write(head("/count", "transfer-encoding: chunked\r\nexpect: 100-continue"))
        await reader.readuntil(b"100 Continue\r\n\r\n")
        writer.write(b"4\r\nbody\r\n0\r\n" + b"a:\r\n" * 75_000)
        status, body = await answer(reader)

    assert (status, json.loads(body)["type"]) == (431, "urn:gradless:problem:headers-too-large")
    assert refusals == ["too_large"]


async def test_trailers_are_accepted_and_do_not_become_headers(connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(chunked("/count") + b"4;why=not\r\nbody\r\n0\r\nx-trailing: here\r\n\r\n")
        assert await answer(reader) == (200, b"4 bytes, trailing None")
        writer.write(head("/", "x: y", "GET"))
        assert await answer(reader) == (200, b"here")


@pytest.mark.parametrize(
    ("framing", "piece"),
    [("content-length: 1000000000", b"x"), ("transfer-encoding: chunked", b"1\r\nx\r\n")],
    ids=["declared", "chunked"],
)
async def test_a_body_that_arrives_slowly_after_its_response_has_the_head_timeout(
    connect: Connect, framing: str, piece: bytes
) -> None:
    async with connect() as (reader, writer):
        writer.write(head("/", framing))
        assert await answer(reader) == (200, b"here")
        # Each piece restarts the keep-alive timeout.
        async with asyncio.timeout(PATIENCE_S):
            await send_until_closed(writer, piece, pause_s=0.05)


async def test_keep_alive_starts_at_the_late_end_of_a_body_and_times_out(
    connect: Connect,
) -> None:
    async with connect() as (reader, writer):
        writer.write(head("/", "content-length: 4") + b"bo")
        assert await answer(reader) == (200, b"here")
        writer.write(b"dy")
        await asyncio.sleep(0.7)
        writer.write(head("/", "x: y", "GET"))
        assert await answer(reader) == (200, b"here")
        writer.write(head("/", "content-length: 4") + b"bo")
        assert await answer(reader) == (200, b"here")
        writer.write(b"dy")
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""


async def test_a_body_in_chunks_of_one_byte_is_refused(connect: Connect, refusals: list[str]) -> None:
    async with connect() as (reader, writer):
        writer.write(chunked("/count") + b"1\r\nx\r\n" * 5000)
        status, body = await answer(reader)
        assert await reader.read() == b""

    assert (status, json.loads(body)["type"]) == (400, "urn:gradless:problem:too-finely-chunked")
    assert refusals == ["malformed"]


@pytest.mark.parametrize(("size", "times"), [(1, 4000), (40, 20_000), (4096, 100)])
async def test_a_body_in_a_plausible_number_of_chunks_is_read(connect: Connect, size: int, times: int) -> None:
    chunk = b"%x\r\n" % size + b"x" * size + b"\r\n"
    async with connect() as (reader, writer):
        writer.write(chunked("/count") + chunk * times + b"0\r\n\r\n")
        assert await answer(reader) == (200, f"{size * times} bytes, trailing None".encode())


async def test_a_malformed_chunk_after_the_response_gets_no_second_response(connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(chunked("/"))
        assert await answer(reader) == (200, b"here")
        writer.write(b"no chunk\r\n")
        assert await reader.read() == b""
