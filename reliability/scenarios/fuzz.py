"""Images with flipped bits, cut short or spliced: each is answered and none ends the process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

import uvloop

from reliability.clients import Clients
from reliability.counted import documented_statuses
from reliability.finding import Finding, Scenario
from reliability.known import format_statuses
from reliability.mutations import FORMATS, SEED, mutated_images
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, Served, Vitals, growth_mb, serving
from reliability.wire import CLASSIFY, Connection, post

_IMAGES = 20_000
_CLIENTS = 8
_GROWTH_BAR_MB = 20.0
# By then decoders have made their one-time allocations.
_WARMING_SHARE = 0.25


class _Result(NamedTuple):
    clients: Clients
    documented: frozenset[int]
    before: Vitals
    after: Vitals


def measure(scale: Scale) -> Iterator[Finding]:
    """Run on one server of the null model, which leaves HTTP and decoding."""
    images = scale.count(_IMAGES, least=1000)
    load = f"{images:,} mutated images of {len(FORMATS)} formats, seed {SEED}"
    scenario = Scenario("fuzz", load)
    with serving(NULL_MODEL) as served:
        result = uvloop.run(_fuzzed(served, images))
        alive = served.alive()
    clients = result.clients
    allowed = {status for status in result.documented if status < 500}  # noqa: PLR2004 - of HTTP
    undocumented = {status: count for status, count in clients.statuses.items() if status not in allowed}
    yield scenario.finding(
        "each is answered with 2xx or a documented 4xx",
        f"{format_statuses(clients.statuses)}; broken off: {clients.broken}; undocumented: {undocumented or 'none'}",
        met=not undocumented and not clients.broken,
    )
    yield scenario.finding("the process survives", "it did" if alive else "it died", met=alive)
    yield scenario.finding(
        f"memory grows by ≤ {_GROWTH_BAR_MB:g} MB after the first quarter",
        f"{growth_mb(result.before, result.after):+.1f} MB",
        met=growth_mb(result.before, result.after) <= _GROWTH_BAR_MB,
    )


async def _fuzzed(served: Served, images: int) -> _Result:
    documented = (await documented_statuses(served.address))[CLASSIFY]
    mutated = mutated_images(SEED, images)
    clients = Clients()

    async def send(most: int) -> None:
        async with Connection(served.address) as connection:
            for _ in range(most):
                if (image := next(mutated, None)) is None:
                    return
                await clients.call(connection, post(CLASSIFY, image))

    async def all_send(most: int) -> None:
        await asyncio.gather(*(send(most) for _ in range(_CLIENTS)))

    await all_send(round(images * _WARMING_SHARE / _CLIENTS))
    before = await served.vitals_at_rest()
    await all_send(images)
    return _Result(clients, documented, before, await served.vitals_at_rest())
