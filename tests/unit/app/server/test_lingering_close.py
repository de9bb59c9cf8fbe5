"""Where a client may still be sending, the sending side is closed first, and the client waited for within limits."""

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
    """One connection to a server of this event loop."""

    def __init__(self, state: ServerState, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.state, self.reader, self.writer = state, reader, writer
        self.left = asyncio.Event()
        self.lost = asyncio.Event()

    async def refused(self) -> None:
        """Send a head whose body is not wanted, and read the answer to its end."""
        self.writer.write(UNREAD)
        answer = await self.reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"refused")

    async def closed(self) -> float:
        """Wait until the server has closed it; the seconds that took."""
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
                found.left.set()
                return
        await PlainTextResponse("refused", headers={"connection": "close"})(scope, receive, send)

    class Noted(BoundedConnection):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            found.lost.set()

    config = uvicorn.Config(answer, log_config=None, lifespan="off")
    config.load()
    state = ServerState()
    protocol = Noted.with_bounds(head_timeout_s, lambda _row, _seconds: None)
    server = await asyncio.get_running_loop().create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    async with server, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        found = Served(state, reader, writer)
        try:
            yield found
        finally:
            writer.close()


async def test_it_waits_for_a_client_that_goes_on_sending_and_ends_with_it() -> None:
    async with served(PATIENCE_S) as connection:
        await connection.refused()
        for _ in range(64):
            connection.writer.write(bytes(2**18))
            await connection.writer.drain()
            assert connection.state.connections
        connection.writer.close()
        assert await connection.closed() < 1


async def test_a_client_that_has_gone_quiet_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.lingering_close._QUIET_S", 0.2)
    async with served(PATIENCE_S) as connection:
        await connection.refused()
        assert await connection.closed() < 2


async def test_a_client_that_drips_is_waited_for_as_long_as_for_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.lingering_close._QUIET_S", 0.2)
    async with served(0.5) as connection:
        await connection.refused()
        closed = asyncio.ensure_future(connection.closed())
        while not closed.done():
            connection.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert 0.2 < await closed < 5


async def test_a_client_that_sends_without_end_is_cut_off_after_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.lingering_close._MOST_BYTES", 2**20)
    async with served(PATIENCE_S) as connection:
        await connection.refused()
        sent = 0
        with pytest.raises(ConnectionError):  # noqa: PT012 - whichever write it is that fails
            while True:
                connection.writer.write(bytes(2**16))
                sent += 2**16
                await connection.writer.drain()
        assert 2**20 < sent < 2**25


async def test_a_service_that_stops_waits_a_short_time_for_it_whenever_it_began() -> None:
    async with served(PATIENCE_S) as connection:
        await connection.refused()
        for each in connection.state.connections:
            each.shutdown()  # type: ignore[attr-defined]  # uvicorn types it as any protocol
        assert await connection.closed() < 4


async def test_the_reader_of_a_broken_body_hears_of_it_before_the_client_has_closed() -> None:
    async with served(PATIENCE_S) as connection:
        connection.writer.write(READ + b"4\r\nbody\r\nno length\r\n")
        assert (await connection.reader.read()).startswith(b"HTTP/1.1 400")
        await connection.left.wait()
        assert connection.state.connections


async def test_requests_behind_the_last_answer_are_not_begun() -> None:
    async with served(PATIENCE_S) as connection:
        connection.writer.write(READ[:-2] + b"connection: close\r\n\r\n4\r\nbody\r\n0\r\n\r\n" + READ * 3)
        answer = await connection.reader.read()
        assert answer.count(b"HTTP/1.1") == 1
