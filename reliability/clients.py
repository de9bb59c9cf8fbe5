"""Well-behaved clients: each sends one request after another and waits for the answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

from reliability.wire import Address, Answer, Connection, Request

_OK = 200
# A server that has ended refuses connections as fast as they come.
_RECONNECT_S = 0.1


class Clients:
    """Statuses, connection errors and latencies of the requests of all clients."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.broken = 0
        self.latencies_ms: list[float] = []

    @property
    def requests(self) -> int:
        """Number of requests that have ended."""
        return self.statuses.total() + self.broken

    @property
    def unanswered(self) -> int:
        """Number of requests that did not get 200."""
        return self.requests - self.statuses[_OK]

    async def call(self, connection: Connection, request: Request) -> None:
        """Send one request and record its end."""
        sent_at = perf_counter()
        try:
            answer = await connection.answer_to(request)
        except (OSError, EOFError):
            self.broken += 1
            await connection.close()
            await asyncio.sleep(_RECONNECT_S)
        else:
            self.statuses[answer.status] += 1
            self.latencies_ms.append((perf_counter() - sent_at) * 1e3)


@asynccontextmanager
async def running_clients(address: Address, requests: Sequence[Request]) -> AsyncIterator[Clients]:
    """Run one client for each of `requests`, which repeats it until the block ends and its last answer has arrived."""
    clients, ending = Clients(), asyncio.Event()

    async def one(request: Request) -> None:
        async with Connection(address) as connection:
            while not ending.is_set():
                await clients.call(connection, request)

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(one(request))
        try:
            yield clients
        finally:
            ending.set()


async def answered(connection: Connection, request: Request) -> Answer:
    """Return the answer to a request. Raises RuntimeError if its status is not 200."""
    answer = await connection.answer_to(request)
    if answer.status != _OK:
        raise RuntimeError(f"answered with {answer.status}: {answer.body[:200]!r}")
    return answer


async def first_answer_ms(address: Address, request: Request) -> float:
    """Return the latency of a request on a new connection. Raises RuntimeError if its status is not 200."""
    sent_at = perf_counter()
    async with Connection(address) as connection:
        await answered(connection, request)
    return (perf_counter() - sent_at) * 1e3
