"""Limits of what clients of gRPC hold without an end: calls whose answers they do not read, and unfinished messages."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from app.api.contracts.grpc_messages import client_of, received
from models.interface.admission import Budget
from models.interface.errors import BodyMemoryFullError

TOO_MANY_CALLS = "This client has too many unfinished calls. Read the answers of those before."

# Seconds in which messages arrive that are not slow.
_QUICK_READ_S = 1.0


class CallsOfClients:
    """Limits the unfinished calls of one client address to `limit`.

    A client that sets the window of its streams to zero, or reads nothing, leaves calls unfinished whose handlers have
    returned. grpcio can neither limit their time nor cancel them, and has a limit only for all clients together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unfinished: Counter[str] = Counter()

    def begin(self, context: Any) -> bool:
        """Count a call until grpcio has sent its status; return False, and do not count it, at the limit."""
        client = client_of(context.peer())
        address = client[0] if client else ""
        if self._unfinished[address] >= self._limit:
            return False
        self._unfinished[address] += 1
        context.add_done_callback(lambda _: self._end(address))
        return True

    def _end(self, address: str) -> None:
        self._unfinished[address] -= 1
        if not self._unfinished[address]:
            del self._unfinished[address]


class MessageReads:
    """Limits the messages that are being received: to `most`, and to `slow` of those that take over a second.

    A message is in memory before its size is known, and its client may announce the largest and never finish it. Silent
    calls have a place for a second, so they do not keep the messages of other clients out.
    """

    def __init__(self, most: int, slow: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._all = Budget(most, self._refusal)
        self._slow = Budget(slow, self._refusal)

    async def read(self, context: Any, timeout_s: float) -> bytes:
        """Return the message of a call. Raises BodyMemoryFullError at a limit, and as `received` does."""
        self._all.acquire(1)
        try:
            return await self._read(context, timeout_s)
        finally:
            self._all.release(1)

    async def _read(self, context: Any, timeout_s: float) -> bytes:
        loop = asyncio.get_running_loop()
        slow = False

        def become_slow() -> None:
            nonlocal slow
            if self._slow.overload(1) is None:
                self._slow.acquire(1)
                slow = True
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(_QUICK_READ_S, become_slow)
        try:
            async with asyncio.timeout(None) as limit:
                return await received(context, timeout_s)
        except TimeoutError:
            raise self._refusal() from None
        finally:
            timer.cancel()
            if slow:
                self._slow.release(1)

    def _refusal(self, _used: float = 0) -> BodyMemoryFullError:
        return BodyMemoryFullError(self._max_bytes)
