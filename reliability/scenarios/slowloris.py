"""Thousands of connections that ask for nothing, or for a byte of a header a second: do those who ask notice?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from statistics import median

from reliability.finding import Finding, Scenario
from reliability.flooding import flood
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import Connection, Place

_IDLE = 2000
_TRICKLING = 200
_CALLERS = 8
_ROUNDS = 5
_SECONDS = 10.0
_BAR = 1.1
_AT_ONCE = 100
_BYTE_EVERY_S = 1.0
_HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 100_000


def measure(scale: Scale) -> Iterator[Finding]:
    """Rounds without and with them in turns, on one server of the default model."""
    rounds, seconds = max(3, scale.count(_ROUNDS)), max(3.0, _SECONDS * scale.share)
    load = (
        f"{_IDLE:,} idle connections, {_TRICKLING} that send a byte a second; {rounds} rounds of {seconds:g} s each way"
    )
    scenario = Scenario("slowloris", load)
    with serving(DEFAULT_MODEL) as served:
        alone, beside = asyncio.run(_in_turns(served, rounds, seconds))
        alive = served.alive()
    ratio = median(beside) / median(alone)
    yield scenario.finding(
        f"p99 of {_CALLERS} callers moves by ≤ {_BAR - 1:.0%}",
        f"{median(alone):.0f} ms alone ({min(alone):.0f} to {max(alone):.0f}), {median(beside):.0f} ms beside them "
        f"({min(beside):.0f} to {max(beside):.0f}): {ratio - 1:+.0%}",
        met=ratio <= _BAR,
    )
    yield scenario.finding("the process lives", "it lived" if alive else "it died", met=alive)


async def _in_turns(served: Served, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(await _p99_ms(served, seconds))
        async with _slow_ones(served.place):
            beside.append(await _p99_ms(served, seconds))
        await served.vitals_at_rest()
    return alone, beside


async def _p99_ms(served: Served, seconds: float) -> float:
    report = await asyncio.to_thread(flood, served, callers=_CALLERS, closed_s=seconds)
    if report["closed"]["statuses"].keys() != {"200"}:
        raise RuntimeError(f"not every caller was answered: {report['closed']['statuses']}")
    return float(report["closed"]["accepted"]["p99_ms"])


@asynccontextmanager
async def _slow_ones(place: Place) -> AsyncIterator[None]:
    """All connected from the first moment to the last: whom the server closes comes again."""
    connected = asyncio.Semaphore(0)
    opening = asyncio.Semaphore(_AT_ONCE)

    async def one(*, trickles: bool) -> None:
        first = True
        while True:
            async with Connection(place) as connection:
                with suppress(OSError):
                    async with opening:
                        await connection.send(b"")
                    if first:
                        first = False
                        connected.release()
                    await (_trickle(connection) if trickles else connection.ended())

    slow = [asyncio.create_task(one(trickles=number < _TRICKLING)) for number in range(_IDLE + _TRICKLING)]
    try:
        async with asyncio.timeout(60):
            for _ in slow:
                await connected.acquire()
        yield
    finally:
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


async def _trickle(connection: Connection) -> None:
    for place in range(len(_HEAD)):
        await connection.send(_HEAD[place : place + 1])
        await asyncio.sleep(_BYTE_EVERY_S)
