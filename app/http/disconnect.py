"""Client disconnects: cancel a request's work when its client closes the connection. FastAPI does not do so itself."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from fastapi import Request
from starlette.types import Scope

from app.http.problems import ClientDisconnectedError
from models.interface.errors import DrainingError
from models.interface.request import NEVER_CANCELLED, CancelToken

T = TypeVar("T")

# The ASGI extension through which app/server/connection.py passes its token to each request.
_EXTENSION = "gradless.disconnect"

# States of a TCP connection that the peer has closed or reset: TCP_CLOSE and TCP_CLOSE_WAIT of Linux's
# include/net/tcp_states.h.
_CLOSED_BY_PEER = frozenset({7, 8})


class ClientDisconnect(CancelToken):
    """The token of one connection, or of one call without a connection of its own: cancelled when its client
    disconnects. The current request may add a callback.

    ASGI's own way is to await a message, which takes one task per request.
    """

    __slots__ = ("_callback", "_close", "_transport")

    def __init__(self, transport: asyncio.Transport | None = None, close: Callable[[], object] = lambda: None) -> None:
        """`close` closes the connection if it is still open. It may be called from any thread."""
        super().__init__()
        self._transport = transport
        self._close = close
        self._callback: Callable[[], object] | None = None

    @property
    def cancelled(self) -> bool:
        # The event loop may not have read the end of the connection yet: it reads pending requests first, and reads
        # nothing while pipelined requests wait. So ask the kernel. The event loop runs the callback after `close`.
        if not self._cancelled and self._transport is not None and _closed_by_peer(self._transport):
            self._cancelled = True
            self._close()
        return self._cancelled

    def cancel(self) -> None:
        """Report the disconnect, on the event loop."""
        self._cancelled = True
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    def attach_to(self, scope: Scope) -> None:
        """Make this the token of the request of `scope`."""
        scope["extensions"] = {_EXTENSION: self}

    def set_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback` once when the client disconnects; at once if it has."""
        if self._cancelled:
            callback()
        else:
            self._callback = callback

    def clear_callback(self) -> None:
        self._callback = None


def cancel_token_of(request: Request) -> CancelToken:
    """Return the cancel token of the request's connection. Behind another server's connections it is NEVER_CANCELLED;
    run_until_disconnect works there as well."""
    return _disconnect_of(request) or NEVER_CANCELLED


async def run_until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; cancel it if the client of `request` disconnects first.

    Read the request's body to its end before. Raises ClientDisconnectedError, and what `work` raises.
    """
    task = cast("asyncio.Task[T]", asyncio.current_task())
    cancelled_before = task.cancelling()
    disconnected = False

    def cancel() -> None:
        nonlocal disconnected
        disconnected = True
        task.cancel()

    disconnect = _disconnect_of(request)
    if disconnect is None:
        watcher = asyncio.ensure_future(_watch(request, cancel))
    else:
        disconnect.set_callback(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if disconnected and task.uncancel() <= cancelled_before:
            raise ClientDisconnectedError from None
        if task.cancelling() <= cancelled_before:
            # `work` was cancelled but this task was not: the runtime closed meanwhile.
            raise DrainingError from None
        raise
    finally:
        if disconnect is None:
            # Wait for its end, so that no task outlives the request.
            watcher.cancel()
            await asyncio.wait([watcher])
        else:
            disconnect.clear_callback()


def _disconnect_of(request: Request) -> ClientDisconnect | None:
    disconnect: ClientDisconnect | None = request.scope.get("extensions", {}).get(_EXTENSION)
    return disconnect


def _closed_by_peer(transport: asyncio.Transport) -> bool:
    """Return whether the kernel reports that the peer has closed the connection. Linux only, TCP only."""
    connection = transport.get_extra_info("socket")
    if connection is None or sys.platform != "linux":
        return False
    try:
        # The first byte is the state. Unlike a poll, this call does not release the GIL to a busy event loop.
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _CLOSED_BY_PEER
    except OSError:
        # Not TCP; or closed on this side, which the event loop knows.
        return False


async def _watch(request: Request, on_disconnect: Callable[[], object]) -> None:
    """Wait for ASGI's disconnect message, behind servers without our connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    on_disconnect()
