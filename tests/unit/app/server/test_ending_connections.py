"""A connection that is shut down closes when no request is in transit, and is freed without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn.server import ServerState

from app.server.connection import BoundedConnection

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"


async def say_here(_: object) -> PlainTextResponse:
    return PlainTextResponse("here")


@asynccontextmanager
async def served() -> AsyncIterator[tuple[ServerState, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Run a server on this event loop, and open one connection to it."""
    config = uvicorn.Config(Starlette(routes=[Route("/", say_here)]), log_config=None)
    config.load()
    state = ServerState()
    protocol = BoundedConnection.with_bounds(10, lambda _row, _seconds: None)
    server = await asyncio.get_running_loop().create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield state, reader, writer
        finally:
            writer.close()


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(4) == b"here"
    return head


async def test_a_request_in_transit_during_a_shutdown_is_answered() -> None:
    async with served() as (state, reader, writer):
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


async def test_an_idle_connection_is_closed_by_a_shutdown() -> None:
    async with served() as (state, reader, writer):
        writer.write(REQUEST)
        await answer(reader)
        for connection in state.connections:
            connection.shutdown()
        assert await reader.read() == b""
        assert not state.connections


@pytest.mark.parametrize("headers", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"], ids=["plain", "upgrade to h2c"])
async def test_a_lost_connection_is_freed_without_the_garbage_collector(headers: bytes) -> None:
    freed = asyncio.Event()
    async with served() as (state, reader, writer):
        gc.disable()
        try:
            writer.write(REQUEST[:-2] + headers + b"\r\n")
            await answer(reader)
            [connection] = state.connections
            finalizer = weakref.finalize(connection, freed.set)
            del connection
            writer.close()
            async with asyncio.timeout(10):
                await freed.wait()
        finally:
            gc.enable()
    assert not finalizer.alive
