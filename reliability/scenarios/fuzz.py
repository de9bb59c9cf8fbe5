"""Images with flipped bits, cut short and spliced, as requests: each is answered, and none ends the process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import uvloop

from models.samples import draw, encode
from reliability.callers import Callers
from reliability.counted import documented_statuses
from reliability.finding import Finding, Scenario
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, Served, Vitals, growth_mb, serving
from reliability.wire import CLASSIFY, Connection, post

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_IMAGES = 20_000
_CALLERS = 8
_SEED = 20_261_124
_GROWTH_BAR_MB = 20.0
# What decoders allocate once has been by then.
_WARMING_SHARE = 0.25
_MOST_FLIPS = 32
# Where formats keep their sizes and tables.
_HEADER = 128


class _Seen(NamedTuple):
    callers: Callers
    documented: frozenset[int]
    before: Vitals
    after: Vitals


def measure(scale: Scale) -> Iterator[Finding]:
    """On one server of the null model: what is left is the way to it."""
    images = scale.count(_IMAGES, least=1000)
    load = f"{images:,} mutated {', '.join(_FORMATS)} images, seed {_SEED}"
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
    mutated = _mutated(random.Random(_SEED), images)  # noqa: S311 - a load, no secret
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


def _mutated(source: random.Random, count: int) -> Iterator[bytes]:
    """The same ones every time."""
    originals = _originals()
    for _ in range(count):
        image = bytearray(source.choice(originals))
        for mutate in source.sample((_flip, _flip_header, _truncate, _splice), source.choice((1, 1, 2))):
            image = mutate(image, source, originals)
        yield bytes(image)


def _originals() -> Sequence[bytes]:
    clock, crossword = draw("clock"), draw("crossword")
    pictures = [clock.resize((160, 120)), crossword.resize((64, 64)).convert("L"), clock.resize((48, 48)).quantize(16)]
    return [
        encode(picture.convert("RGB") if image_format in {"JPEG", "WEBP"} else picture, image_format)
        for picture in pictures
        for image_format in _FORMATS
    ]


def _flip(image: bytearray, source: random.Random, _originals: Sequence[bytes]) -> bytearray:
    return _flipped(image, source, len(image))


def _flip_header(image: bytearray, source: random.Random, _originals: Sequence[bytes]) -> bytearray:
    return _flipped(image, source, min(len(image), _HEADER))


def _flipped(image: bytearray, source: random.Random, within: int) -> bytearray:
    for _ in range(source.randint(1, _MOST_FLIPS) if within else 0):
        image[source.randrange(within)] ^= 1 << source.randrange(8)
    return image


def _truncate(image: bytearray, source: random.Random, _originals: Sequence[bytes]) -> bytearray:
    return image[: source.randrange(len(image) + 1)]


def _splice(image: bytearray, source: random.Random, originals: Sequence[bytes]) -> bytearray:
    other = source.choice(originals)
    return image[: source.randrange(len(image) + 1)] + other[source.randrange(len(other)) :]
