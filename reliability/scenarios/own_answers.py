"""Thousands of distinct images behind two HTTP processes, which are killed in turn, while clients disconnect."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from reliability.counted import counted_at_rest
from reliability.finding import Finding, Scenario
from reliability.known import Known, asking, well_afterwards
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, Served, serving
from reliability.wire import Connection

_IMAGES = 20_000
_KILLS = 20
_WORKERS = 2
_CONNECTIONS = 16
_MOST_IMAGES = 3
_LEAVING_SHARE = 0.15
_LONGEST_STAY_S = 0.03
# Who was on a process that was killed asks again, and may meet another that is.
_MOST_TIMES = 6
_REPLACED_WITHIN_S = 60.0
_LOOKING_S = 0.02


class _Load:
    """Clients of one server, and what they saw."""

    def __init__(self, served: Served, images: int, kills: int) -> None:
        self._served = served
        self._images, self._kills = images, kills
        self._source = random.Random(0)  # noqa: S311 - a load, no secret
        self._next = 0
        self.known = Known()
        self.asked = self.left = self.unanswered = self.killed = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kill())
            for _ in range(_CONNECTIONS):
                group.create_task(self._client())

    async def _client(self) -> None:
        async with Connection(self._served.place) as connection:
            while self._next < self._images:
                numbers = range(self._next, min(self._images, self._next + self._source.randint(1, _MOST_IMAGES)))
                self._next = numbers.stop
                if self._source.random() < _LEAVING_SHARE:
                    await self._leave(numbers)
                else:
                    self.asked += 1
                    self.unanswered += not await self._answered(connection, numbers)

    async def _answered(self, connection: Connection, numbers: range) -> bool:
        for _ in range(_MOST_TIMES):
            if await self.known.ask(connection, numbers):
                return True
        return False

    async def _leave(self, numbers: range) -> None:
        try:
            async with Connection(self._served.place) as connection:
                await connection.send(asking(numbers).wire)
                await asyncio.sleep(self._source.uniform(0, _LONGEST_STAY_S))
        except OSError:
            # On a process that is killed.
            pass
        self.left += 1

    async def _kill(self) -> None:
        """Kill an HTTP process each time so many images more have been sent, and wait for the one that replaces it."""
        while self.killed < self._kills and self._next < self._images:
            if self._next < (self.killed + 1) * self._images / (self._kills + 1):
                await asyncio.sleep(_LOOKING_S)
                continue
            self._source.choice(self._served.workers()).kill()
            self.killed += 1
            async with asyncio.timeout(_REPLACED_WITHIN_S):
                while len(self._served.workers()) < _WORKERS:  # noqa: ASYNC110 - of other processes
                    await asyncio.sleep(_LOOKING_S)


def measure(scale: Scale) -> Iterator[Finding]:
    """On one server of the `null` model."""
    images, kills = scale.count(_IMAGES, least=600), scale.count(_KILLS, least=2)
    with serving(NULL_MODEL, GRADLESS_HTTP_WORKERS=str(_WORKERS)) as served:
        load = _Load(served, images, kills)
        in_flight, well, afterwards = asyncio.run(_run(load, served))
    scenario = Scenario(
        "own-answers",
        f"GRADLESS_HTTP_WORKERS={_WORKERS}: {images:,} distinct images, 1 to {_MOST_IMAGES} a request, "
        f"from {_CONNECTIONS} connections; {load.left:,} requests disconnected, {load.killed} HTTP processes killed",
    )
    yield scenario.finding("no request gets the answer to another", load.known.told(), met=not load.known.wrong)
    yield scenario.finding(
        "each request of those who stay is answered, at the latest when it is sent again",
        f"{load.asked - load.unanswered:,} of {load.asked:,}",
        met=not load.unanswered and load.killed > 0,
    )
    yield scenario.finding(
        "nothing stays inside, ready and answering afterwards",
        f"{in_flight:g} images in flight; {afterwards}",
        met=well and not in_flight,
    )


async def _run(load: _Load, served: Served) -> tuple[float, bool, str]:
    await load.run()
    well, afterwards = await well_afterwards(served.place)
    return (await counted_at_rest(served.place, frozenset(), 0)).in_flight, well, afterwards
