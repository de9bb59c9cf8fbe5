"""Ten thousand callers vanish, half of them within their body and half right after it, beside others who stay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from reliability.callers import Callers, calling
from reliability.counted import Counted, counted_at_rest
from reliability.finding import Finding, Scenario
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, Vitals, growth_mb, serving
from reliability.wire import CLASSIFY, Connection, Place, Request, post

_VANISHING = 10_000
_AT_ONCE = 16
_STAYING = 8
_GROWTH_BAR_MB = 20.0
_ROUTES = frozenset({CLASSIFY})
# First for pools and caches to fill: in a share of the whole.
_WARMING_SHARE = 0.1
_SPARE_DESCRIPTORS = 2


class _Seen(NamedTuple):
    callers: Callers
    before: Vitals
    after: Vitals
    server: Counted


def measure(scale: Scale) -> Iterator[Finding]:
    """On one server of the default model."""
    vanishing = scale.count(_VANISHING, least=500)
    scenario = Scenario("vanishing", f"{vanishing:,} callers vanish, {_AT_ONCE} at a time, beside {_STAYING} who stay")
    with serving(DEFAULT_MODEL) as served:
        seen = asyncio.run(_vanish(served, vanishing))
    callers, before, after = seen.callers, seen.before, seen.after
    yield scenario.finding(
        "all who stay are answered with 200",
        f"{callers.statuses[200]:,} of {callers.requests:,}; others: {_others(callers)}",
        met=not callers.unanswered,
    )
    yield scenario.finding(
        "nothing stays inside", f"{seen.server.in_flight:g} images in flight", met=not seen.server.in_flight
    )
    yield scenario.finding(
        "descriptors and threads as before",
        f"{before.descriptors} and {before.threads} before, {after.descriptors} and {after.threads} after",
        met=after.descriptors <= before.descriptors + _SPARE_DESCRIPTORS and after.threads <= before.threads,
    )
    yield scenario.finding(
        f"memory grows by ≤ {_GROWTH_BAR_MB:g} MB",
        f"{growth_mb(before, after):+.1f} MB",
        met=growth_mb(before, after) <= _GROWTH_BAR_MB,
    )


async def _vanish(served: Served, vanishing: int) -> _Seen:
    request = post(CLASSIFY, draw_pictures().clock)
    warming = round(vanishing * _WARMING_SHARE)
    first = await _crowd(served.place, request, warming)
    await counted_at_rest(served.place, _ROUTES, warming + first.requests)
    before = await served.vitals_at_rest()
    callers = await _crowd(served.place, request, vanishing)
    server = await counted_at_rest(served.place, _ROUTES, warming + first.requests + vanishing + callers.requests)
    return _Seen(callers, before, await served.vitals_at_rest(), server)


async def _crowd(place: Place, request: Request, vanishing: int) -> Callers:
    numbers = iter(range(vanishing))

    async def vanish() -> None:
        for number in numbers:
            # A server may refuse what it will not read to its end.
            with suppress(OSError):
                async with Connection(place) as connection:
                    await connection.send(request.wire if number % 2 else request.wire[: len(request.wire) // 2])

    async with calling(place, [request] * _STAYING) as callers, asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(vanish())
    return callers


def _others(callers: Callers) -> str:
    others = {status: count for status, count in callers.statuses.items() if status != 200}  # noqa: PLR2004 - of HTTP
    return ", ".join([*(f"{status}: {count}" for status, count in others.items()), f"broken off: {callers.broken}"])
