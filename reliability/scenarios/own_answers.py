"""Thousands of distinct images to two HTTP workers, which are killed in turn, while clients disconnect."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from reliability.counted import counted_at_rest
from reliability.finding import Finding, Scenario
from reliability.known import KnownAnswers, request_for, well_afterwards
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, Served, serving
from reliability.wire import Connection

_IMAGES = 20_000
_KILLS = 20
_WORKERS = 2
_CONNECTIONS = 16
_MAX_IMAGES = 3
_DISCONNECT_SHARE = 0.15
_MAX_WAIT_S = 0.03
# A client of a killed worker retries, and may reach another that is killed.
_MAX_ATTEMPTS = 6
_REPLACED_WITHIN_S = 60.0
_POLL_S = 0.02


class _Load:
    """Clients of one server and the results of their requests."""

    def __init__(self, served: Served, images: int, kills: int) -> None:
        self._served = served
        self._images, self._kills = images, kills
        self._source = random.Random(0)  # noqa: S311 - a load, no secret
        self._next = 0
        self.known = KnownAnswers()
        self.sent = self.disconnected = self.unanswered = self.killed = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kill())
            for _ in range(_CONNECTIONS):
                group.create_task(self._client())

    async def _client(self) -> None:
        async with Connection(self._served.address) as connection:
            while self._next < self._images:
                numbers = range(self._next, min(self._images, self._next + self._source.randint(1, _MAX_IMAGES)))
                self._next = numbers.stop
                if self._source.random() < _DISCONNECT_SHARE:
                    await self._disconnect(numbers)
                else:
                    self.sent += 1
                    self.unanswered += not await self._answered(connection, numbers)

    async def _answered(self, connection: Connection, numbers: range) -> bool:
        for _ in range(_MAX_ATTEMPTS):
            if await self.known.send(connection, numbers):
                return True
        return False

    async def _disconnect(self, numbers: range) -> None:
        try:
            async with Connection(self._served.address) as connection:
                await connection.send(request_for(numbers).wire)
                await asyncio.sleep(self._source.uniform(0, _MAX_WAIT_S))
        except OSError:
            # The worker was killed.
            pass
        self.disconnected += 1

    async def _kill(self) -> None:
        """Kill a worker after each equal share of the images, and wait for its replacement."""
        while self.killed < self._kills and self._next < self._images:
            if self._next < (self.killed + 1) * self._images / (self._kills + 1):
                await asyncio.sleep(_POLL_S)
                continue
            self._source.choice(self._served.workers()).kill()
            self.killed += 1
            async with asyncio.timeout(_REPLACED_WITHIN_S):
                while len(self._served.workers()) < _WORKERS:  # noqa: ASYNC110 - of other processes
                    await asyncio.sleep(_POLL_S)


def measure(scale: Scale) -> Iterator[Finding]:
    """Run on one server of the `null` model."""
    images, kills = scale.count(_IMAGES, least=600), scale.count(_KILLS, least=2)
    with serving(NULL_MODEL, GRADLESS_HTTP_WORKERS=str(_WORKERS)) as served:
        load = _Load(served, images, kills)
        in_flight, well, afterwards = asyncio.run(_run(load, served))
    scenario = Scenario(
        "own-answers",
        f"GRADLESS_HTTP_WORKERS={_WORKERS}: {images:,} distinct images, 1 to {_MAX_IMAGES} a request, "
        f"from {_CONNECTIONS} connections; {load.disconnected:,} requests disconnected, {load.killed} workers killed",
    )
    yield scenario.finding("no request gets the answer to another", load.known.summary(), met=not load.known.wrong)
    yield scenario.finding(
        "each request of the other clients is answered, if need be after a retry",
        f"{load.sent - load.unanswered:,} of {load.sent:,}",
        met=not load.unanswered and load.killed > 0,
    )
    yield scenario.finding(
        "no image stays in flight; ready and answering afterwards",
        f"{in_flight:g} images in flight; {afterwards}",
        met=well and not in_flight,
    )


async def _run(load: _Load, served: Served) -> tuple[float, bool, str]:
    await load.run()
    well, afterwards = await well_afterwards(served.address)
    return (await counted_at_rest(served.address, frozenset(), 0)).in_flight, well, afterwards
