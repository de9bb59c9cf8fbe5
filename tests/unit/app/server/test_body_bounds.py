"""What frames a body is bounded as a head is, whether or not anybody reads the body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn.server import ServerState

from app.server.connection import BoundedConnection

pytestmark = pytest.mark.anyio

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], AbstractAsyncContextManager[Connection]]

ENDLESS_BYTES = 2**22


async def say_here(_: Request) -> PlainTextResponse:
    return PlainTextResponse("here")


async def count(request: Request) -> PlainTextResponse:
    body = await request.body()
    return PlainTextResponse(f"{len(body)} bytes, trailing {request.headers.get('x-trailing')}")


@pytest.fixture
def refusals() -> list[str]:
    return []


@pytest.fixture
async def connect(refusals: list[str]) -> AsyncIterator[Connect]:
    """Connect to a server of this event loop whose callers have half a second for heads."""
    routes = [Route("/", say_here, methods=["GET", "POST"]), Route("/count", count, methods=["POST"])]
    config = uvicorn.Config(Starlette(routes=routes), log_config=None, timeout_keep_alive=1)
    config.load()
    state = ServerState()
    protocol = BoundedConnection.with_bounds(0.5, lambda row, _seconds: refusals.append(str(row.reason)))
    server = await asyncio.get_running_loop().create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)

    @asynccontextmanager
    async def connected() -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()

    async with server:
        yield connected


def head(path: str, framing: str, method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: here\r\n{framing}\r\n\r\n".encode()


def chunked(path: str, method: str = "POST") -> bytes:
    return head(path, "transfer-encoding: chunked", method)


async def send_for_ever(writer: asyncio.StreamWriter, piece: bytes, pause_s: float = 0) -> int:
    """Send until the other side hangs up; how much it took."""
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
    pytest.fail(f"{sent} bytes were taken without a word")


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
    ids=["fields after the body", "one such field", "an extension of a chunk"],
)
async def test_fields_around_a_body_end_although_its_request_has_been_answered(
    connect: Connect, begin: bytes, piece: bytes
) -> None:
    async with connect() as (reader, writer):
        writer.write(chunked("/", "GET") + begin)
        assert (await answer(reader))[0] == 200
        assert await send_for_ever(writer, piece) < 2**20
        # Nothing that would be taken for the answer to the next request.
        assert not reader._buffer  # type: ignore[attr-defined]  # noqa: SLF001 - what has come and was not read


async def test_fields_around_a_body_that_is_being_read_are_refused(connect: Connect, refusals: list[str]) -> None:
    async with connect() as (reader, writer):
        writer.write(head("/count", "transfer-encoding: chunked\r\nexpect: 100-continue"))
        await reader.readuntil(b"100 Continue\r\n\r\n")
        writer.write(b"4\r\nbody\r\n0\r\n" + b"a:\r\n" * 75_000)
        status, body = await answer(reader)

    assert (status, json.loads(body)["type"]) == (431, "urn:gradless:problem:headers-too-large")
    assert refusals == ["too_large"]


async def test_fields_after_a_body_are_forgiven_and_not_taken_for_headers(connect: Connect) -> None:
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
async def test_a_body_that_drips_in_after_its_answer_has_as_long_as_a_head(
    connect: Connect, framing: str, piece: bytes
) -> None:
    async with connect() as (reader, writer):
        writer.write(head("/", framing))
        assert await answer(reader) == (200, b"here")
        # A second is also what a connection may rest; each piece begins that anew.
        async with asyncio.timeout(10):
            await send_for_ever(writer, piece, pause_s=0.05)


async def test_a_connection_lives_on_after_the_late_end_of_an_answered_body_and_does_not_rest_for_ever(
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
        async with asyncio.timeout(10):
            assert await reader.read() == b""


async def test_a_body_in_chunks_of_a_byte_is_refused(connect: Connect, refusals: list[str]) -> None:
    async with connect() as (reader, writer):
        writer.write(chunked("/count") + b"1\r\nx\r\n" * 5000)
        status, body = await answer(reader)
        assert await reader.read() == b""

    assert (status, json.loads(body)["type"]) == (400, "urn:gradless:problem:too-finely-chunked")
    assert refusals == ["malformed"]


@pytest.mark.parametrize(("size", "times"), [(1, 4000), (40, 20_000), (4096, 100)])
async def test_a_body_in_chunks_that_somebody_may_have_a_reason_for_is_read(
    connect: Connect, size: int, times: int
) -> None:
    chunk = b"%x\r\n" % size + b"x" * size + b"\r\n"
    async with connect() as (reader, writer):
        writer.write(chunked("/count") + chunk * times + b"0\r\n\r\n")
        assert await answer(reader) == (200, f"{size * times} bytes, trailing None".encode())


async def test_what_is_no_chunk_is_not_answered_a_second_time(connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(chunked("/"))
        assert await answer(reader) == (200, b"here")
        writer.write(b"no chunk\r\n")
        assert await reader.read() == b""
