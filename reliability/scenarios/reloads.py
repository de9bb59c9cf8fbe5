"""A model is reloaded repeatedly with two HTTP workers, while clients disconnect during long decodes."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from reliability.finding import Finding, Scenario
from reliability.known import KnownAnswers, exchange, format_counts, well_afterwards
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, serving
from reliability.wire import FEATURES, Address, Connection, post

_SECONDS = 60.0
_WORKERS = 2
_DISCONNECTING = 3
_STAYING = 6
# A decode of 12 MP takes some 30 ms, after those queued before it.
_MAX_WAIT_S = 0.12
_BETWEEN_LOADS_S = 0.02


class _Load:
    """Clients of one server and the results of their requests."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._ending = asyncio.Event()
        self._numbers = itertools.count()
        self._source = random.Random(0)  # noqa: S311 - a load, no secret
        self._photograph = post(FEATURES, draw_pictures().photograph).wire
        self.known = KnownAnswers()
        self.loads: Counter[str] = Counter()
        self.disconnected = 0

    async def run(self, seconds: float) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reload())
            for _ in range(_DISCONNECTING):
                group.create_task(self._disconnect())
            for _ in range(_STAYING):
                group.create_task(self._stay())
            await asyncio.sleep(seconds)
            self._ending.set()

    async def _reload(self) -> None:
        async with Connection(self._address) as connection:
            while not self._ending.is_set():
                end, _ = await exchange(connection, post(f"/v1/models/{NULL_MODEL}", images=0))
                self.loads[end] += 1
                await asyncio.sleep(_BETWEEN_LOADS_S)

    async def _disconnect(self) -> None:
        while not self._ending.is_set():
            with suppress(OSError):
                async with Connection(self._address) as connection:
                    await connection.send(self._photograph)
                    await asyncio.sleep(self._source.uniform(0, _MAX_WAIT_S))
            self.disconnected += 1

    async def _stay(self) -> None:
        async with Connection(self._address) as connection:
            while not self._ending.is_set():
                number = next(self._numbers)
                await self.known.send(connection, range(number, number + 1))


def measure(scale: Scale) -> Iterator[Finding]:
    """Run on one server of the `null` model."""
    seconds = max(4.0, _SECONDS * scale.share)
    scenario = Scenario(
        "reloads",
        f"GRADLESS_HTTP_WORKERS={_WORKERS}, {seconds:g} s: one client reloads the model continuously, {_DISCONNECTING} "
        f"send 12 MP and disconnect, {_STAYING} send images with known answers",
    )
    with serving(NULL_MODEL, GRADLESS_HTTP_WORKERS=str(_WORKERS)) as served:
        load, well, afterwards = asyncio.run(_run(served.address, seconds))
    yield scenario.finding(
        "each request of the other clients gets its own answer",
        f"{load.known.summary()}; {load.disconnected:,} disconnected",
        met=load.known.all_answered and not load.known.wrong,
    )
    yield scenario.finding("each reload succeeds", format_counts(load.loads), met=set(load.loads) == {"200"})
    yield scenario.finding("ready and answering afterwards", afterwards, met=well)


async def _run(address: Address, seconds: float) -> tuple[_Load, bool, str]:
    load = _Load(address)
    await load.run(seconds)
    return load, *await well_afterwards(address)
