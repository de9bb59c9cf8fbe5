"""While a client may still be sending, the server closes its sending side first and discards data within limits.

A client that does not read its response is disconnected, one on a slow line is not.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.server.connection import BoundedConnection

pytestmark = pytest.mark.anyio

Listen = Callable[..., AbstractAsyncContextManager[tuple[ServerState, Any]]]

UNREAD = b"POST /unread HTTP/1.1\r\nhost: here\r\ncontent-length: 1000000000\r\n\r\n"
READ = b"POST /read HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"
PATIENCE_S = 60
# A limit that no test meets.
NEVER_S = 3600


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


@asynccontextmanager
async def served(listen: Listen, head_timeout_s: float) -> AsyncIterator[Served]:
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

    listening = listen(answer, head_timeout_s, connection=ObservedConnection)
    async with listening as (state, address), asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(*address)
        connection = Served(state, reader, writer)
        try:
            yield connection
        finally:
            writer.close()


async def test_the_server_waits_while_the_client_sends_and_closes_when_the_client_closes(listen: Listen) -> None:
    async with served(listen, NEVER_S) as connection:
        await connection.send_refused_request()
        for _ in range(64):
            connection.writer.write(bytes(2**18))
            await connection.writer.drain()
            assert connection.state.connections
        connection.writer.close()
        await connection.lost.wait()


async def test_the_head_timeout_limits_a_client_that_sends_single_bytes(listen: Listen) -> None:
    async with served(listen, 0.5) as connection:
        await connection.send_refused_request()
        while not connection.lost.is_set():
            connection.writer.write(b"x")
            await asyncio.sleep(0.02)


async def test_a_client_that_never_stops_sending_is_disconnected_after_a_number_of_bytes(
    listen: Listen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.server.transport._MAX_DISCARDED_BYTES", 2**20)
    async with served(listen, NEVER_S) as connection:
        await connection.send_refused_request()
        sent = 0
        with pytest.raises(ConnectionError):  # noqa: PT012 - any of the writes may fail
            while True:
                connection.writer.write(bytes(2**16))
                sent += 2**16
                await connection.writer.drain()
        assert 2**20 < sent < 2**25


async def test_a_shutdown_shortens_a_lingering_close_that_has_begun(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.server.transport._SHUTDOWN_S", 0.2)
    async with served(listen, NEVER_S) as connection:
        await connection.send_refused_request()
        for protocol in connection.state.connections:
            protocol.shutdown()  # type: ignore[attr-defined]  # uvicorn types it as any protocol
        await connection.lost.wait()


async def test_the_handler_of_a_malformed_body_sees_a_disconnect_during_the_lingering_close(listen: Listen) -> None:
    async with served(listen, NEVER_S) as connection:
        connection.writer.write(READ + b"4\r\nbody\r\nno length\r\n")
        assert (await connection.reader.read()).startswith(b"HTTP/1.1 400")
        await connection.disconnected.wait()
        assert connection.state.connections


async def test_requests_pipelined_behind_a_connection_close_are_not_started(listen: Listen) -> None:
    async with served(listen, NEVER_S) as connection:
        connection.writer.write(READ[:-2] + b"connection: close\r\n\r\n4\r\nbody\r\n0\r\n\r\n" + READ * 3)
        answer = await connection.reader.read()
        assert answer.count(b"HTTP/1.1") == 1


# More than the kernel buffers on both sides of a connection.
LARGE_BYTES = 2**23
HEAD_TIMEOUT_S = 0.5
KEEP_ALIVE_S = 1

SendRequest = Callable[[bytes], AbstractAsyncContextManager[tuple[ServerState, socket.socket]]]


async def large(_: Request) -> Response:
    return Response(bytes(LARGE_BYTES))


@pytest.fixture
async def send_request(listen: Listen) -> AsyncIterator[SendRequest]:
    """Send a request to a server on this event loop, from a socket with a small receive buffer."""
    app = Starlette(routes=[Route("/", large)])
    loop = asyncio.get_running_loop()
    async with listen(app, HEAD_TIMEOUT_S, timeout_keep_alive=KEEP_ALIVE_S) as (state, address):

        @asynccontextmanager
        async def sent(request: bytes) -> AsyncIterator[tuple[ServerState, socket.socket]]:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                await loop.sock_connect(client, address)
                await loop.sock_sendall(client, request)
                yield state, client

        yield sent


async def wait_until_closed(state: ServerState) -> None:
    while not state.total_requests or state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)


async def read_slowly(client: socket.socket, most: int, pause_s: float) -> int:
    received = 0
    while chunk := await asyncio.get_running_loop().sock_recv(client, most):
        received += len(chunk)
        await asyncio.sleep(pause_s)
    return received


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_a_client_that_reads_nothing_is_disconnected(send_request: SendRequest, connection: str) -> None:
    request = f"GET / HTTP/1.1\r\nhost: here\r\nconnection: {connection}\r\n\r\n".encode()
    async with send_request(request) as (state, client), asyncio.timeout(PATIENCE_S):
        await wait_until_closed(state)
        assert await read_slowly(client, 2**20, 0) < LARGE_BYTES


async def test_a_client_that_reads_a_few_bytes_at_a_time_is_disconnected(send_request: SendRequest) -> None:
    async with send_request(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n") as (state, client), asyncio.timeout(PATIENCE_S):
        reading = asyncio.ensure_future(read_slowly(client, 1024, 0.02))
        await wait_until_closed(state)
        assert not reading.done()
        reading.cancel()


async def test_a_response_that_is_read_slowly_is_sent_completely(
    send_request: SendRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As fast a client as a busy machine has.
    monkeypatch.setattr("app.server.transport._MIN_READ_BYTES", 1)
    request = b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n"
    started_at = asyncio.get_running_loop().time()
    async with send_request(request) as (_, client), asyncio.timeout(PATIENCE_S):
        received = await read_slowly(client, 2**17, 0.001)

    assert received > LARGE_BYTES
    assert asyncio.get_running_loop().time() - started_at > 2 * HEAD_TIMEOUT_S
