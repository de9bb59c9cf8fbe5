"""Well-behaved callers, one request after another, whose answers somebody waits for: beside those who misbehave."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

from reliability.wire import Connection, Place, Request

_OK = 200
# A server that has ended refuses connections as fast as they come.
_RECONNECT_S = 0.1


class Callers:
    """What they saw."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.broken = 0
        self.latencies_ms: list[float] = []

    @property
    def requests(self) -> int:
        """All that were sent and have ended."""
        return self.statuses.total() + self.broken

    @property
    def unanswered(self) -> int:
        """Those that had no 200."""
        return self.requests - self.statuses[_OK]

    async def call(self, connection: Connection, request: Request) -> None:
        """One exchange; a broken one is counted."""
        sent_at = perf_counter()
        try:
            answer = await connection.answer_to(request)
        except (OSError, EOFError):
            self.broken += 1
            await connection.leave()
            await asyncio.sleep(_RECONNECT_S)
        else:
            self.statuses[answer.status] += 1
            self.latencies_ms.append((perf_counter() - sent_at) * 1e3)


@asynccontextmanager
async def calling(place: Place, requests: Sequence[Request]) -> AsyncIterator[Callers]:
    """One caller for each of `requests`, who sends it over and over until the block ends and he has his last answer."""
    callers, ending = Callers(), asyncio.Event()

    async def one(request: Request) -> None:
        async with Connection(place) as connection:
            while not ending.is_set():
                await callers.call(connection, request)

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(one(request))
        try:
            yield callers
        finally:
            ending.set()


async def first_answer_ms(place: Place, request: Request) -> float:
    """How long a caller with a connection of his own waits. Raises RuntimeError when it is no good answer."""
    sent_at = perf_counter()
    async with Connection(place) as connection:
        answer = await connection.answer_to(request)
    if answer.status != _OK:
        raise RuntimeError(f"answered with {answer.status}: {answer.body[:200]!r}")
    return (perf_counter() - sent_at) * 1e3
