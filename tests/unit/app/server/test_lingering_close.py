"""While a client may still be sending, the server closes its sending side first and discards data within limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.server.connection import BoundedConnection

pytestmark = pytest.mark.anyio

UNREAD = b"POST /unread HTTP/1.1\r\nhost: here\r\ncontent-length: 1000000000\r\n\r\n"
READ = b"POST /read HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"
PATIENCE_S = 20


class Served:
    """One connection to a server on this event loop."""

    def __init__(self, state: ServerState, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.state, self.reader, self.writer = state, reader, writer
        self.disconnected = asyncio.Event()
        self.lost = asyncio.Event()

    async def send_refused_request(self) -> None:
        """Send a head whose body is refused, and read the complete response."""
        self.writer.write(UNREAD)
        answer = await self.reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"refused")

    async def seconds_until_closed(self) -> float:
        """Wait until the server has closed the connection; return the seconds."""
        began_at = asyncio.get_running_loop().time()
        await self.lost.wait()
        return asyncio.get_running_loop().time() - began_at


@asynccontextmanager
async def served(head_timeout_s: float) -> AsyncIterator[Served]:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/read":
            try:
                await Request(scope, receive).body()
            except ClientDisconnect:
                connection.disconnected.set()
                return
        await PlainTextResponse("refused", headers={"connection": "close"})(scope, receive, send)

    class ObservedConnection(BoundedConnection):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            connection.lost.set()

    config = uvicorn.Config(answer, log_config=None, lifespan="off")
    config.load()
    state = ServerState()
    protocol = ObservedConnection.with_bounds(head_timeout_s, lambda _row, _seconds: None)
    server = await asyncio.get_running_loop().create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    async with server, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        connection = Served(state, reader, writer)
        try:
            yield connection
        finally:
            writer.close()


async def test_the_server_waits_while_the_client_sends_and_closes_when_the_client_closes() -> None:
    async with served(PATIENCE_S) as connection:
        await connection.send_refused_request()
        for _ in range(64):
            connection.writer.write(bytes(2**18))
            await connection.writer.drain()
            assert connection.state.connections
        connection.writer.close()
        assert await connection.seconds_until_closed() < 1


async def test_the_server_closes_when_the_client_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.transport._QUIET_S", 0.2)
    async with served(PATIENCE_S) as connection:
        await connection.send_refused_request()
        assert await connection.seconds_until_closed() < 2


async def test_the_head_timeout_limits_a_client_that_sends_single_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.transport._QUIET_S", 0.2)
    async with served(0.5) as connection:
        await connection.send_refused_request()
        closed = asyncio.ensure_future(connection.seconds_until_closed())
        while not closed.done():
            connection.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert 0.2 < await closed < 5


async def test_a_client_that_never_stops_sending_is_disconnected_after_a_number_of_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.server.transport._MAX_DISCARDED_BYTES", 2**20)
    async with served(PATIENCE_S) as connection:
        await connection.send_refused_request()
        sent = 0
        with pytest.raises(ConnectionError):  # noqa: PT012 - any of the writes may fail
            while True:
                connection.writer.write(bytes(2**16))
                sent += 2**16
                await connection.writer.drain()
        assert 2**20 < sent < 2**25


async def test_a_shutdown_shortens_a_lingering_close_that_has_begun() -> None:
    async with served(PATIENCE_S) as connection:
        await connection.send_refused_request()
        for protocol in connection.state.connections:
            protocol.shutdown()  # type: ignore[attr-defined]  # uvicorn types it as any protocol
        assert await connection.seconds_until_closed() < 4


async def test_the_handler_of_a_malformed_body_sees_a_disconnect_during_the_lingering_close() -> None:
    async with served(PATIENCE_S) as connection:
        connection.writer.write(READ + b"4\r\nbody\r\nno length\r\n")
        assert (await connection.reader.read()).startswith(b"HTTP/1.1 400")
        await connection.disconnected.wait()
        assert connection.state.connections


async def test_requests_pipelined_behind_a_connection_close_are_not_started() -> None:
    async with served(PATIENCE_S) as connection:
        connection.writer.write(READ[:-2] + b"connection: close\r\n\r\n4\r\nbody\r\n0\r\n\r\n" + READ * 3)
        answer = await connection.reader.read()
        assert answer.count(b"HTTP/1.1") == 1
