"""Images with flipped bits, cut short and spliced, as requests: each is answered, and none ends the process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

import uvloop

from reliability.callers import Callers
from reliability.counted import documented_statuses
from reliability.finding import Finding, Scenario
from reliability.mutations import FORMATS, SEED, mutated_images
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, Served, Vitals, growth_mb, serving
from reliability.wire import CLASSIFY, Connection, post

_IMAGES = 20_000
_CALLERS = 8
_GROWTH_BAR_MB = 20.0
# What decoders allocate once has been by then.
_WARMING_SHARE = 0.25


class _Seen(NamedTuple):
    callers: Callers
    documented: frozenset[int]
    before: Vitals
    after: Vitals


def measure(scale: Scale) -> Iterator[Finding]:
    """On one server of the null model: what is left is the way to it."""
    images = scale.count(_IMAGES, least=1000)
    load = f"{images:,} mutated {', '.join(FORMATS)} images, seed {SEED}"
    scenario = Scenario("fuzz", load)
    with serving(NULL_MODEL) as served:
        seen = uvloop.run(_fuzzed(served, images))
        alive = served.alive()
    callers = seen.callers
    allowed = {status for status in seen.documented if status < 500}  # noqa: PLR2004 - of HTTP
    strange = {status: count for status, count in callers.statuses.items() if status not in allowed}
    statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(callers.statuses.items()))
    yield scenario.finding(
        "each answered with 2xx or a documented 4xx",
        f"{statuses}; broken off: {callers.broken}; undocumented: {strange or 'none'}",
        met=not strange and not callers.broken,
    )
    yield scenario.finding("the process lives", "it lived" if alive else "it died", met=alive)
    yield scenario.finding(
        f"memory grows by ≤ {_GROWTH_BAR_MB:g} MB after the first quarter",
        f"{growth_mb(seen.before, seen.after):+.1f} MB",
        met=growth_mb(seen.before, seen.after) <= _GROWTH_BAR_MB,
    )


async def _fuzzed(served: Served, images: int) -> _Seen:
    documented = (await documented_statuses(served.place))[CLASSIFY]
    mutated = mutated_images(SEED, images)
    callers = Callers()

    async def send(most: int) -> None:
        async with Connection(served.place) as connection:
            for _ in range(most):
                if (image := next(mutated, None)) is None:
                    return
                await callers.call(connection, post(CLASSIFY, image))

    async def all_send(most: int) -> None:
        await asyncio.gather(*(send(most) for _ in range(_CALLERS)))

    await all_send(round(images * _WARMING_SHARE / _CALLERS))
    before = await served.vitals_at_rest()
    await all_send(images)
    return _Seen(callers, documented, before, await served.vitals_at_rest())
