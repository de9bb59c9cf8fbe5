"""A client that does not read its response is disconnected; a client on a slow line is not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.server import ServerState

from app.server.connection import BoundedConnection

pytestmark = pytest.mark.anyio

# More than the kernel buffers on both sides of a connection.
LARGE_BYTES = 2**23
PATIENCE_S = 0.5
KEEP_ALIVE_S = 1

SendRequest = Callable[[bytes], AbstractAsyncContextManager[tuple[ServerState, socket.socket]]]


async def large(_: Request) -> Response:
    return Response(bytes(LARGE_BYTES))


@pytest.fixture
async def send_request() -> AsyncIterator[SendRequest]:
    """Send a request to a server on this event loop, from a socket with a small receive buffer."""
    app = Starlette(routes=[Route("/", large)])
    config = uvicorn.Config(app, log_config=None, timeout_keep_alive=KEEP_ALIVE_S)
    config.load()
    state = ServerState()
    protocol = BoundedConnection.with_bounds(PATIENCE_S, lambda _row, _seconds: None)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)

    @asynccontextmanager
    async def sent(request: bytes) -> AsyncIterator[tuple[ServerState, socket.socket]]:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, server.sockets[0].getsockname())
            await loop.sock_sendall(client, request)
            yield state, client

    async with server:
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
    async with send_request(request) as (state, client), asyncio.timeout(10):
        await wait_until_closed(state)
        assert await read_slowly(client, 2**20, 0) < LARGE_BYTES


async def test_a_client_that_reads_a_few_bytes_at_a_time_is_disconnected(send_request: SendRequest) -> None:
    async with send_request(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n") as (state, client), asyncio.timeout(10):
        reading = asyncio.ensure_future(read_slowly(client, 1024, 0.02))
        await wait_until_closed(state)
        assert not reading.done()
        reading.cancel()


async def test_a_response_that_is_read_slowly_is_sent_completely(send_request: SendRequest) -> None:
    request = b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n"
    started_at = asyncio.get_running_loop().time()
    async with send_request(request) as (_, client), asyncio.timeout(60):
        received = await read_slowly(client, 2**17, 0.001)

    assert received > LARGE_BYTES
    assert asyncio.get_running_loop().time() - started_at > 2 * PATIENCE_S
