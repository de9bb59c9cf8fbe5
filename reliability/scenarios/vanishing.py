"""Ten thousand clients disconnect during their body or right after it, while others stay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from reliability.clients import Clients, running_clients
from reliability.counted import Counted, counted_at_rest
from reliability.finding import Finding, Scenario
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, Vitals, growth_mb, serving
from reliability.wire import CLASSIFY, Address, Connection, Request, post

_VANISHING = 10_000
_AT_ONCE = 16
_STAYING = 8
_GROWTH_BAR_MB = 20.0
_ROUTES = frozenset({CLASSIFY})
# Share of the load that fills pools and caches first.
_WARMING_SHARE = 0.1
_SPARE_DESCRIPTORS = 2


class _Result(NamedTuple):
    clients: Clients
    before: Vitals
    after: Vitals
    server: Counted


def measure(scale: Scale) -> Iterator[Finding]:
    """Run on one server of the default model."""
    vanishing = scale.count(_VANISHING, least=500)
    scenario = Scenario("vanishing", f"{vanishing:,} clients disconnect, {_AT_ONCE} at a time, while {_STAYING} stay")
    with serving(DEFAULT_MODEL) as served:
        result = asyncio.run(_vanish(served, vanishing))
    clients, before, after = result.clients, result.before, result.after
    yield scenario.finding(
        "all requests of the others are answered with 200",
        f"{clients.statuses[200]:,} of {clients.requests:,}; others: {_others(clients)}",
        met=not clients.unanswered,
    )
    yield scenario.finding(
        "no image stays in flight", f"{result.server.in_flight:g} images in flight", met=not result.server.in_flight
    )
    yield scenario.finding(
        "no more descriptors or threads than before",
        f"{before.descriptors} and {before.threads} before, {after.descriptors} and {after.threads} after",
        met=after.descriptors <= before.descriptors + _SPARE_DESCRIPTORS and after.threads <= before.threads,
    )
    yield scenario.finding(
        f"memory grows by ≤ {_GROWTH_BAR_MB:g} MB",
        f"{growth_mb(before, after):+.1f} MB",
        met=growth_mb(before, after) <= _GROWTH_BAR_MB,
    )


async def _vanish(served: Served, vanishing: int) -> _Result:
    request = post(CLASSIFY, draw_pictures().clock)
    warming = round(vanishing * _WARMING_SHARE)
    first = await _crowd(served.address, request, warming)
    await counted_at_rest(served.address, _ROUTES, warming + first.requests)
    before = await served.vitals_at_rest()
    clients = await _crowd(served.address, request, vanishing)
    server = await counted_at_rest(served.address, _ROUTES, warming + first.requests + vanishing + clients.requests)
    return _Result(clients, before, await served.vitals_at_rest(), server)


async def _crowd(address: Address, request: Request, vanishing: int) -> Clients:
    numbers = iter(range(vanishing))

    async def vanish() -> None:
        for number in numbers:
            # A server may close the connection without reading the whole body.
            with suppress(OSError):
                async with Connection(address) as connection:
                    await connection.send(request.wire if number % 2 else request.wire[: len(request.wire) // 2])

    async with running_clients(address, [request] * _STAYING) as clients, asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(vanish())
    return clients


def _others(clients: Clients) -> str:
    others = {status: count for status, count in clients.statuses.items() if status != 200}  # noqa: PLR2004 - of HTTP
    return ", ".join([*(f"{status}: {count}" for status, count in others.items()), f"broken off: {clients.broken}"])
