"""Two hundred clients send a request and disconnect at once; the next one must not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from statistics import median

from reliability.clients import first_answer_ms
from reliability.finding import Finding, Scenario
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import CLASSIFY, Connection, Request, post

_CLIENTS = 200
_REPEATS = 10
_WARMING = 20
_BAR_MS = 100.0


def measure(scale: Scale) -> Iterator[Finding]:
    """Repeat on one server."""
    repeats = scale.count(_REPEATS, least=3)
    scenario = Scenario("hang-up", f"{repeats} times {_CLIENTS} clients that send a JPEG and disconnect at once")
    with serving(DEFAULT_MODEL) as served:
        waited_ms = asyncio.run(_repeated(served, repeats))
    yield scenario.finding(
        f"the next answer within {_BAR_MS:g} ms, each time",
        f"median {median(waited_ms):.0f} ms, worst {max(waited_ms):.0f} ms",
        met=max(waited_ms) <= _BAR_MS,
    )


async def _repeated(served: Served, repeats: int) -> list[float]:
    request = post(CLASSIFY, draw_pictures().clock)
    for _ in range(_WARMING):
        await first_answer_ms(served.address, request)
    waited_ms = []
    for _ in range(repeats):
        await asyncio.gather(*(_disconnect(served, request) for _ in range(_CLIENTS)))
        waited_ms.append(await first_answer_ms(served.address, request))
        # The next two hundred find a server without clients.
        await served.vitals_at_rest()
    return waited_ms


async def _disconnect(served: Served, request: Request) -> None:
    async with Connection(served.address) as connection:
        await connection.send(request.wire)
