"""Callers leave. FastAPI does not notice by itself: a handler runs on for nobody unless somebody listens."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Scope

from app.http.problems import ClientDisconnectedError
from models.interface.cancellation import Wanted, always
from models.interface.errors import DrainingError

T = TypeVar("T")

# By this name the connections of app/server/connection.py give theirs to the requests on them (ASGI extensions).
_EXTENSION = "gradless.departure"

# States of a connection whose other side has closed its end or broken it off: TCP_CLOSE and TCP_CLOSE_WAIT of Linux's
# include/net/tcp_states.h.
_LEFT_BY_PEER = frozenset({7, 8})


class ClientDisconnect:
    """Of the caller of one connection: he leaves once, and the request under way, if there is one, is told.

    ASGI has a request ask for it, which takes a task for each; a connection knows, and tells for nothing.
    """

    def __init__(self, transport: asyncio.Transport, leave: Callable[[], object]) -> None:
        """`leave`, from any thread: the connection is to end, if it has not yet."""
        self._transport = transport
        self._leave = leave
        self._noticed = False
        self._happened = False
        self._heard_by: Callable[[], object] | None = None

    def offer(self, scope: Scope) -> None:
        """Let the request of `scope` hear of it."""
        scope["extensions"] = {_EXTENSION: self}

    def happen(self) -> None:
        """The caller has left."""
        self._happened = True
        if self._heard_by is not None:
            self._heard_by()

    def tell(self, hearer: Callable[[], object]) -> None:
        """Call `hearer` when the caller leaves; at once if he has left."""
        self._heard_by = hearer
        if self._happened:
            hearer()

    def forget(self) -> None:
        """Tell nobody."""
        self._heard_by = None

    def not_yet(self) -> bool:
        """Whether the caller is still there, also where the event loop has not come to know better: of a crowd that
        hangs up it reads all requests first, and would have them all begun. From any thread."""
        if not self._happened and not self._noticed and _left_by_peer(self._transport):
            # Where requests wait behind the one under way nothing is read, and so not that nobody waits for them.
            self._noticed = True
            self._leave()
        return not (self._happened or self._noticed)


def still_there(request: Request) -> Wanted:
    """Asks whether the caller of `request` is, in so far as his connection tells."""
    departure: ClientDisconnect | None = request.scope.get("extensions", {}).get(_EXTENSION)
    return always if departure is None else departure.not_yet


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller of `request` disconnects first.

    The request's body must have been read to its end. Raises ClientDisconnectedError, and what `work` raises.
    """
    working = asyncio.current_task()
    if working is None:  # pragma: no cover - a coroutine that runs is in a task
        raise RuntimeError("only a task can be cancelled")
    cancelled_before = working.cancelling()
    waiter = _Waiter(working)
    departure = request.scope.get("extensions", {}).get(_EXTENSION)
    if departure is None:
        listening = asyncio.ensure_future(_listen(request, waiter.leave))
    else:
        departure.tell(waiter.leave)
    try:
        return await work
    except asyncio.CancelledError:
        if waiter.caller_gone and working.uncancel() <= cancelled_before:
            raise ClientDisconnectedError from None
        if working.cancelling() <= cancelled_before:
            # Not this task but what it waited for: the runtime was closed under it.
            raise DrainingError from None
        raise
    finally:
        if departure is None:
            # Waited for, so that nothing outlives the request.
            listening.cancel()
            await asyncio.wait([listening])
        else:
            departure.forget()


def _left_by_peer(transport: asyncio.Transport) -> bool:
    """Whether the other side has closed its end, in so far as the kernel tells: Linux does, of TCP."""
    connection = transport.get_extra_info("socket")
    if connection is None or sys.platform != "linux":
        return False
    try:
        # The first byte is the state. Python keeps the GIL for this: a poll would let it go, to a busy event loop.
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _LEFT_BY_PEER
    except OSError:
        # Not TCP; or closed on this side, which the event loop knows.
        return False


class _Waiter:
    """Cancels a task when it is told that the caller has left, and remembers to have done so."""

    def __init__(self, working: asyncio.Task[Any]) -> None:
        self._working = working
        self.caller_gone = False

    def leave(self) -> None:
        self.caller_gone = True
        self._working.cancel()


async def _listen(request: Request, on_departure: Callable[[], object]) -> None:
    """As ASGI has it, behind other servers."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    on_departure()
