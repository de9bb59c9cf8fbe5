"""Limits of what clients of gRPC hold without an end: calls whose answers they do not read, and unfinished messages."""

from __future__ import annotations

import asyncio
from collections import Counter
from ipaddress import IPv6Network
from typing import Any, cast

from app.api.contracts.grpc_messages import client_of, received
from models.interface.admission import Budget
from models.interface.errors import TooManyCallsError

# Seconds in which messages arrive that are not slow.
_QUICK_READ_S = 1.0
# Bits of an IPv6 address that one network has; its hosts choose the others.
_IPV6_PREFIX = 64


class _Shares:
    """Counts up to `limit` for each client address."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken: Counter[str] = Counter()

    def take(self, address: str) -> bool:
        """Count one more; return False at the limit."""
        if self._taken[address] >= self.limit:
            return False
        self._taken[address] += 1
        return True

    def give_back(self, address: str) -> None:
        self._taken[address] -= 1
        if not self._taken[address]:
            del self._taken[address]


class CallsOfClients:
    """Limits the unfinished calls of one client address to `limit`.

    A client that sets the window of its streams to zero, or reads nothing, leaves calls unfinished whose handlers have
    returned. grpcio can neither limit their time nor cancel them, and has a limit only for all clients together.
    """

    def __init__(self, limit: int) -> None:
        self._unfinished = _Shares(limit)

    def begin(self, context: Any) -> None:
        """Count the call of this task until grpcio has sent its status. Raises TooManyCallsError at the limit."""
        address = _address_of(context)
        if not self._unfinished.take(address):
            raise TooManyCallsError(self._unfinished.limit)
        # grpcio calls the handler and sends its answer in this task. A callback of `context` would be a cycle.
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        task.add_done_callback(lambda _: self._unfinished.give_back(address))


class MessageReads:
    """Limits the messages that are being received: to `most`, and to `slow` of those that take over a second. One
    client address has at most half of each.

    A message is in memory before its size is known, and its client may announce the largest and never finish it. Silent
    calls have a place of the slow ones after a second, or end.
    """

    def __init__(self, most: int, slow: int) -> None:
        self._all = Budget(most, lambda _used: TooManyCallsError(most))
        self._slow = Budget(slow, lambda _used: TooManyCallsError(slow, slow=True))
        self._of_client = _Shares(-(-most // 2))
        self._slow_of_client = _Shares(-(-slow // 2))

    async def read(self, context: Any, timeout_s: float) -> bytes:
        """Return the message of a call. Raises TooManyCallsError at a limit, and as `received` does."""
        address = _address_of(context)
        if not self._of_client.take(address):
            raise TooManyCallsError(self._of_client.limit)
        try:
            self._all.acquire(1)
            try:
                return await self._read(context, address, timeout_s)
            finally:
                self._all.release(1)
        finally:
            self._of_client.give_back(address)

    async def _read(self, context: Any, address: str, timeout_s: float) -> bytes:
        loop = asyncio.get_running_loop()
        slow = False

        def become_slow() -> None:
            nonlocal slow
            if self._slow.overload(1) is None and self._slow_of_client.take(address):
                self._slow.acquire(1)
                slow = True
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(_QUICK_READ_S, become_slow)
        try:
            async with asyncio.timeout(None) as limit:
                return await received(context, timeout_s)
        except TimeoutError:
            raise TooManyCallsError(int(self._slow.limit), slow=True) from None
        finally:
            timer.cancel()
            if slow:
                self._slow.release(1)
                self._slow_of_client.give_back(address)


def _address_of(context: Any) -> str:
    """Return the address of a client, of IPv6 its network: a host may have all addresses of it."""
    client = client_of(context.peer())
    if client is None:
        return ""
    host = client[0]
    return str(IPv6Network((host.partition("%")[0], _IPV6_PREFIX), strict=False)) if ":" in host else host
