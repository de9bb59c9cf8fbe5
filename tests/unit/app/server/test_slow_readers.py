"""Who does not read his answers is cut off; who reads slowly is not."""

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

# More than the kernel keeps of a connection for both sides.
LARGE_BYTES = 2**23
PATIENCE_S = 0.5
KEEP_ALIVE_S = 1

Asked = Callable[[bytes], AbstractAsyncContextManager[tuple[ServerState, socket.socket]]]


async def large(_: Request) -> Response:
    return Response(bytes(LARGE_BYTES))


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    """Send a request to a server of this event loop from a socket that keeps little of what it is sent."""
    app = Starlette(routes=[Route("/", large)])
    config = uvicorn.Config(app, log_config=None, timeout_keep_alive=KEEP_ALIVE_S)
    config.load()
    state = ServerState()
    protocol = BoundedConnection.with_bounds(PATIENCE_S, lambda _row, _seconds: None)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)

    @asynccontextmanager
    async def asking(request: bytes) -> AsyncIterator[tuple[ServerState, socket.socket]]:
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.setblocking(False)
            await loop.sock_connect(caller, server.sockets[0].getsockname())
            await loop.sock_sendall(caller, request)
            yield state, caller

    async with server:
        yield asking


async def gone(state: ServerState) -> None:
    while not state.total_requests or state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)


async def read_slowly(caller: socket.socket, most: int, pause_s: float) -> int:
    received = 0
    while chunk := await asyncio.get_running_loop().sock_recv(caller, most):
        received += len(chunk)
        await asyncio.sleep(pause_s)
    return received


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_an_answer_that_is_not_read_is_given_up(asked: Asked, connection: str) -> None:
    request = f"GET / HTTP/1.1\r\nhost: here\r\nconnection: {connection}\r\n\r\n".encode()
    async with asked(request) as (state, caller), asyncio.timeout(10):
        await gone(state)
        assert await read_slowly(caller, 2**20, 0) < LARGE_BYTES


async def test_an_answer_that_is_read_slowly_is_sent_whole(asked: Asked) -> None:
    request = b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n"
    started_at = asyncio.get_running_loop().time()
    async with asked(request) as (_, caller), asyncio.timeout(60):
        received = await read_slowly(caller, 2**17, 0.001)

    assert received > LARGE_BYTES
    assert asyncio.get_running_loop().time() - started_at > 2 * PATIENCE_S
