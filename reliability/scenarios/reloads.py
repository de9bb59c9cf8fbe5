"""A model is loaded again and again behind two HTTP processes, while clients disconnect within long decodes."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from reliability.finding import Finding, Scenario
from reliability.known import Known, exchange, told, well_afterwards
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, serving
from reliability.wire import FEATURES, Connection, Place, post

_SECONDS = 60.0
_WORKERS = 2
_LEAVING = 3
_STAYING = 6
# A decode of 12 MP takes some 30 ms, behind those before it.
_LONGEST_STAY_S = 0.12
_BETWEEN_LOADS_S = 0.02


class _Load:
    """Clients of one server, and what they saw."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._ending = asyncio.Event()
        self._numbers = itertools.count()
        self._source = random.Random(0)  # noqa: S311 - a load, no secret
        self._photograph = post(FEATURES, draw_pictures().photograph).wire
        self.known = Known()
        self.loads: Counter[str] = Counter()
        self.left = 0

    async def run(self, seconds: float) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reload())
            for _ in range(_LEAVING):
                group.create_task(self._leave())
            for _ in range(_STAYING):
                group.create_task(self._stay())
            await asyncio.sleep(seconds)
            self._ending.set()

    async def _reload(self) -> None:
        async with Connection(self._place) as connection:
            while not self._ending.is_set():
                end, _ = await exchange(connection, post(f"/v1/models/{NULL_MODEL}", images=0))
                self.loads[end] += 1
                await asyncio.sleep(_BETWEEN_LOADS_S)

    async def _leave(self) -> None:
        while not self._ending.is_set():
            with suppress(OSError):
                async with Connection(self._place) as connection:
                    await connection.send(self._photograph)
                    await asyncio.sleep(self._source.uniform(0, _LONGEST_STAY_S))
            self.left += 1

    async def _stay(self) -> None:
        async with Connection(self._place) as connection:
            while not self._ending.is_set():
                number = next(self._numbers)
                await self.known.ask(connection, range(number, number + 1))


def measure(scale: Scale) -> Iterator[Finding]:
    """On one server of the `null` model."""
    seconds = max(10.0, _SECONDS * scale.share)
    scenario = Scenario(
        "reloads",
        f"GRADLESS_HTTP_WORKERS={_WORKERS}, {seconds:g} s: one client reloads the model without pause, {_LEAVING} "
        f"send 12 MP and disconnect, {_STAYING} ask about images whose answers are known",
    )
    with serving(NULL_MODEL, GRADLESS_HTTP_WORKERS=str(_WORKERS)) as served:
        load, well, afterwards = asyncio.run(_run(served.place, seconds))
    yield scenario.finding(
        "each request of those who stay gets its own answer",
        f"{load.known.told()}; {load.left:,} disconnected",
        met=load.known.all_answered and not load.known.wrong,
    )
    yield scenario.finding("each reload succeeds", told(load.loads), met=set(load.loads) == {"200"})
    yield scenario.finding("ready and answering afterwards", afterwards, met=well)


async def _run(place: Place, seconds: float) -> tuple[_Load, bool, str]:
    load = _Load(place)
    await load.run(seconds)
    return load, *await well_afterwards(place)
