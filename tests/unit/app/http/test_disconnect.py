"""A connection cancels its current request when the client disconnects."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvicorn
from fastapi import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from app.http.disconnect import ClientDisconnect, cancel_token_of, run_until_disconnect
from app.http.problems import ClientDisconnectedError
from app.server.connection import BoundedConnection
from models.interface.request import CancelToken

pytestmark = pytest.mark.anyio

_PATIENCE_S = 60

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]


class _Working:
    """Reads a request's body, and works until it is released or its client disconnects."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.began = asyncio.Event()
        self.done = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.tasks = 0
        self.token_cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await self.reads.wait()
        self.bodies.append(await request.body())
        try:
            await run_until_disconnect(request, self._work(cancel_token_of(request)))
        except ClientDisconnectedError:
            self.cancelled.set()
        else:
            await PlainTextResponse("done")(scope, receive, send)

    async def _work(self, token: CancelToken) -> None:
        self.tasks = len(asyncio.all_tasks())
        self.token_cancelled = token.cancelled
        self.began.set()
        await self.done.wait()


@pytest.fixture
def working() -> _Working:
    return _Working()


@pytest.fixture
async def connect(working: _Working) -> AsyncIterator[Connect]:
    config = uvicorn.Config(working, log_config=None, lifespan="off")
    config.load()
    state = ServerState()
    protocol = BoundedConnection.with_bounds(_PATIENCE_S, lambda _row, _seconds: None)
    server = await asyncio.get_running_loop().create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    async with server, asyncio.timeout(_PATIENCE_S):
        yield lambda: asyncio.open_connection(*server.sockets[0].getsockname())
        await asyncio.gather(*state.tasks)


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % len(body) + body


# The last of these comes in pieces, and fills what is read ahead at any size of a piece.
@pytest.mark.parametrize("size", [5, HIGH_WATER_LIMIT + 1, 2**22], ids=["small", "in one read", "in several reads"])
async def test_a_disconnect_cancels_the_work(working: _Working, connect: Connect, size: int) -> None:
    _, writer = await connect()
    writer.write(post(bytes(size)))
    await working.began.wait()
    assert not working.token_cancelled
    assert not working.cancelled.is_set()
    writer.close()

    await working.cancelled.wait()
    assert working.bodies == [bytes(size)]


async def test_work_is_cancelled_if_the_client_disconnected_before_it_began() -> None:
    async def work() -> None:
        await asyncio.sleep(_PATIENCE_S)

    disconnect = ClientDisconnect(_Transport(), lambda: None)
    scope: Scope = {"type": "http", "headers": []}
    disconnect.attach_to(scope)
    disconnect.cancel()

    with pytest.raises(ClientDisconnectedError):
        await run_until_disconnect(Request(scope), work())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports that the peer has closed its end")
async def test_the_token_is_cancelled_at_once_if_the_client_disconnected_before_its_request_was_read(
    working: _Working, connect: Connect
) -> None:
    _, writer = await connect()
    # The client sends everything and disconnects before the event loop runs.
    with socket.create_connection(writer.get_extra_info("peername")) as client:
        client.sendall(post(b"image"))
    await working.cancelled.wait()
    writer.close()

    assert working.token_cancelled


class _Transport(asyncio.Transport):
    """A connection's end, which notes whether it is read from."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """A connection without a peer."""

    def get_write_buffer_size(self) -> int:
        return 0


async def test_a_connection_is_read_during_the_work_to_detect_a_disconnect(working: _Working) -> None:
    config = uvicorn.Config(working, log_config=None, lifespan="off")
    config.load()
    state, transport = ServerState(), _Transport()
    connection = BoundedConnection.with_bounds(_PATIENCE_S, lambda _row, _seconds: None)(config, state, {})
    connection.connection_made(transport)
    head, body = post(bytes(HIGH_WATER_LIMIT + 1)).split(b"\r\n\r\n")
    connection.data_received(head + b"\r\n\r\n")
    # The request waits for its body by now, which comes to its end at once.
    await asyncio.sleep(0)
    connection.data_received(body)
    async with asyncio.timeout(_PATIENCE_S):
        await working.began.wait()
        assert transport.reading
        connection.connection_lost(None)
        await working.cancelled.wait()
        await asyncio.gather(*state.tasks)


async def test_a_disconnect_cancels_the_current_request_and_not_the_previous_one(
    working: _Working, connect: Connect
) -> None:
    reader, writer = await connect()
    working.done.set()
    writer.write(post(b"first"))
    await reader.readuntil(b"done")
    working.done.clear()
    working.began.clear()
    writer.write(post(b"second"))
    await working.began.wait()
    writer.close()

    await working.cancelled.wait()
    assert working.bodies == [b"first", b"second"]


async def test_disconnect_detection_takes_no_task(working: _Working, connect: Connect) -> None:
    before = len(asyncio.all_tasks())
    reader, writer = await connect()
    working.done.set()
    writer.write(post(b"image"))
    await reader.readuntil(b"done")
    writer.close()

    # That of the request itself.
    assert working.tasks == before + 1


async def test_a_body_in_many_pieces_that_waits_to_be_read_is_complete(working: _Working, connect: Connect) -> None:
    pieces = [bytes([number % 251]) * (number + 1) for number in range(200)]
    working.reads.clear()
    working.done.set()
    reader, writer = await connect()
    writer.write(b"POST / HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n")
    for piece in pieces:
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")
    working.reads.set()
    await reader.readuntil(b"done")
    writer.close()

    assert working.bodies == [b"".join(pieces)]
