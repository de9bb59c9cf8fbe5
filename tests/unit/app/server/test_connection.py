"""Data that never becomes a request is refused and reported once; a request reports itself. A connection that is shut
down closes when no request is in transit, and is freed without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.api.load_shedding import Shed
from app.http.problems import Row
from app.observability.metrics import Metrics

pytestmark = pytest.mark.anyio

Listen = Callable[..., AbstractAsyncContextManager[tuple[ServerState, Any]]]

REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
BEGUN = b"POST / HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"


async def read_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    await PlainTextResponse("here")(scope, receive, send)


async def refusals(listen: Listen, *pieces: bytes, answers: int = 0) -> list[tuple[int, float | None]]:
    """Send `pieces` on one connection; wait for a response after each of the first `answers`.

    Return the status and the seconds of each refusal.
    """
    reported: list[tuple[int, float | None]] = []

    def note(row: Row, seconds: float | None) -> None:
        reported.append((row.status, seconds))

    async with listen(read_and_answer, 0.2, note) as (state, address):
        reader, writer = await asyncio.open_connection(*address)
        for number, piece in enumerate(pieces):
            writer.write(piece)
            if number < answers:
                await reader.readuntil(b"\r\n\r\nhere")
        await reader.read()
        writer.close()
        await asyncio.gather(*state.tasks, return_exceptions=True)
    return reported


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ((b"\x16\x03\x01 is how TLS begins\r\n\r\n",), 400),
        # Malformed and too large in one read: it is refused for one of the two reasons.
        ((b"\x16\x03\x01" * 20_000,), 400),
        ((b"GET / HTTP/1.1\r\nx-long: " + b"x" * 40_000,), 431),
        ((b"GET / HTTP/1.1\r\nhost: h\r\n" + b"a:\r\n" * 129,), 431),
        ((b"GET / HTTP/1.1\r\nhost: h",), 408),
        ((REQUEST + b"nonsense\r\n\r\n",), 400),
    ],
    ids=[
        "not HTTP",
        "much that is not HTTP",
        "too large head",
        "too many headers",
        "unfinished head",
        "after a request",
    ],
)
async def test_data_that_never_becomes_a_request_is_refused_once_with_its_duration(
    listen: Listen, pieces: tuple[bytes, ...], status: int
) -> None:
    began_at = perf_counter()
    [(refused_with, seconds)] = await refusals(listen, *pieces)
    assert refused_with == status
    assert seconds is not None
    assert 0 <= seconds <= perf_counter() - began_at
    assert seconds >= 0.19 or status != 408


async def test_the_duration_of_a_later_head_does_not_include_earlier_requests(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second passes between one look at the clock and the next; a head has two looks.
    clock = count()
    monkeypatch.setattr("app.server.connection.perf_counter", lambda: float(next(clock)))
    assert await refusals(listen, REQUEST, REQUEST, b"nonsense\r\n\r\n", answers=2) == [(400, 1.0)]
    assert next(clock) > 2


async def test_a_head_that_began_behind_another_request_has_the_same_limit(listen: Listen) -> None:
    begun = REQUEST + b"GET / HTTP/1.1\r\nhost: here\r\nx-long: " + b"x" * 50_000
    [(status, _)] = await refusals(listen, begun, b"\r\n\r\n", answers=1)
    assert status == 431


async def test_a_head_of_128_headers_is_answered(listen: Listen) -> None:
    head = b"GET / HTTP/1.1\r\nhost: h\r\n" + b"a:\r\n" * 126 + b"connection: close\r\n\r\n"
    assert await refusals(listen, head, answers=1) == []


async def test_a_request_with_a_malformed_body_reports_itself(listen: Listen) -> None:
    assert await refusals(listen, BEGUN + b"no length\r\n") == [(400, None)]


def test_refusals_without_a_request_are_counted_as_requests_without_route_and_method() -> None:
    metrics = Metrics()
    row = Row(431, "headers-too-large", "too large", "too_large")
    metrics.refused_by_connection(row, 0.25)
    metrics.refused_by_connection(row, None)

    families = text_string_to_metric_families(metrics.exposition("")[0].decode())
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.value and not sample.name.endswith("_bucket") and sample.name.startswith("gradless_re")
    }
    assert found == {
        ("gradless_requests_total", "431", "native", "other", "other"): 1,
        ("gradless_request_duration_seconds_count", "4xx", "native", "other", "other"): 1,
        ("gradless_request_duration_seconds_sum", "4xx", "native", "other", "other"): 0.25,
        ("gradless_rejected_total", "too_large"): 2,
    }


@asynccontextmanager
async def served(listen: Listen) -> AsyncIterator[tuple[ServerState, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Run a server on this event loop, and open one connection to it."""
    async with listen(read_and_answer) as (state, address):
        reader, writer = await asyncio.open_connection(*address)
        try:
            yield state, reader, writer
        finally:
            writer.close()


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(4) == b"here"
    return head


async def test_a_request_in_transit_during_a_shutdown_is_answered(listen: Listen) -> None:
    async with served(listen) as (state, reader, writer):
        writer.write(REQUEST)
        assert b"connection: close" not in await answer(reader)
        # The request is in the kernel; the server, on this event loop, has not read it yet.
        writer.write(REQUEST)
        for connection in state.connections:
            connection.shutdown()
        head = await answer(reader)
        assert head.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in head
        assert await reader.read() == b""


async def test_an_idle_connection_is_closed_by_a_shutdown(listen: Listen) -> None:
    async with served(listen) as (state, reader, writer):
        writer.write(REQUEST)
        await answer(reader)
        for connection in state.connections:
            connection.shutdown()
        assert await reader.read() == b""
        assert not state.connections


async def pipelining(state: ServerState) -> Any:
    """Return the only connection once requests wait in its pipeline."""
    while not any(connection.pipeline for connection in state.connections):  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0)
    [connection] = state.connections
    return connection


async def test_a_connection_that_is_reset_while_requests_wait_in_its_pipeline_is_closed(listen: Listen) -> None:
    released = asyncio.Event()

    async def wait(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await released.wait()

    async with listen(wait) as (state, address), asyncio.timeout(60):
        _, writer = await asyncio.open_connection(*address)
        writer.write(REQUEST * 2)
        connection = await pipelining(state)
        # The server reads nothing meanwhile, so it asks the kernel.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        token = connection.scope["extensions"]["gradless.disconnect"]
        while not token.cancelled or state.connections:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
        released.set()
        await asyncio.gather(*state.tasks)


async def test_of_very_many_pipelined_requests_the_first_are_answered_and_the_last_of_these_says_close(
    listen: Listen,
) -> None:
    released = asyncio.Event()

    async def answer_later(scope: Scope, receive: Receive, send: Send) -> None:
        await released.wait()
        await read_and_answer(scope, receive, send)

    async with listen(answer_later) as (state, address), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(REQUEST * 10_000)
        connection = await pipelining(state)
        assert len(connection.pipeline) == 100
        released.set()
        heads = [await answer(reader) for _ in range(101)]
        assert [b"connection: close" in head for head in heads] == [False] * 100 + [True]
        assert await reader.read() == b""
        writer.close()


async def test_pipelined_requests_before_too_many_are_answered_also_after_the_time_limit_of_heads(
    listen: Listen,
) -> None:
    released = asyncio.Event()

    async def read_body_and_answer_later(scope: Scope, receive: Receive, send: Send) -> None:
        # Reading goes on while a handler waits for its body.
        body = await receive()
        await released.wait()
        await read_and_answer(scope, partial(_once, body), send)

    async with listen(read_body_and_answer_later, head_timeout_s=0.2) as (state, address), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(REQUEST * 101)
        assert len((await pipelining(state)).pipeline) == 100
        writer.write(REQUEST)
        await asyncio.sleep(0.4)
        released.set()
        heads = [await answer(reader) for _ in range(101)]
        assert heads[-1].startswith(b"HTTP/1.1 200")
        writer.close()


async def _once(message: Any) -> Any:
    return message


class _Full:
    """Load shedding while every model is full. Its refusals are larger than real ones."""

    on = True
    refused = 0

    def shed(self, *_: object, **__: object) -> Shed:
        self.refused += 1
        return Shed(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 1000000\r\n\r\n" + bytes(10**6), last=False)


async def test_refusals_at_the_head_wait_for_a_client_that_does_not_read_them(listen: Listen) -> None:
    shedding = _Full()
    async with listen(read_and_answer, shedding=shedding) as (state, address), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*address, limit=2**12)
        writer.write(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 0\r\n\r\n" * 50)
        connection = await pipelining(state)
        assert connection.transport.get_write_buffer_size() <= 10**6
        refused = 0
        for _ in range(50):
            if (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 429"):
                refused += 1
                await reader.readexactly(10**6)
            else:
                await reader.readexactly(4)
        assert 1 <= refused == shedding.refused < 50
        writer.close()


@pytest.mark.parametrize("headers", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"], ids=["plain", "upgrade to h2c"])
async def test_a_lost_connection_is_freed_without_the_garbage_collector(listen: Listen, headers: bytes) -> None:
    freed = asyncio.Event()
    async with served(listen) as (state, reader, writer):
        gc.disable()
        try:
            writer.write(REQUEST[:-2] + headers + b"\r\n")
            await answer(reader)
            [connection] = state.connections
            finalizer = weakref.finalize(connection, freed.set)
            del connection
            writer.close()
            async with asyncio.timeout(60):
                await freed.wait()
        finally:
            gc.enable()
    assert not finalizer.alive
