"""Thousands of idle or very slow connections, while other clients send requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from statistics import median

from reliability.finding import Finding, Scenario
from reliability.flood import flood
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import Address, Connection

_IDLE = 2000
_TRICKLING = 200
_CLIENTS = 8
_ROUNDS = 5
_SECONDS = 10.0
_BAR = 1.1
_AT_ONCE = 100
_BYTE_EVERY_S = 1.0
_HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 100_000


def measure(scale: Scale) -> Iterator[Finding]:
    """Alternate rounds without and with slow connections on one server of the default model."""
    rounds, seconds = max(3, scale.count(_ROUNDS)), max(3.0, _SECONDS * scale.share)
    load = (
        f"{_IDLE:,} idle connections, {_TRICKLING} that send a byte a second; {rounds} rounds of {seconds:g} s each way"
    )
    scenario = Scenario("slowloris", load)
    with serving(DEFAULT_MODEL) as served:
        alone, with_slow = asyncio.run(_in_turns(served, rounds, seconds))
        alive = served.alive()
    ratio = median(with_slow) / median(alone)
    yield scenario.finding(
        f"p99 of {_CLIENTS} clients rises by ≤ {_BAR - 1:.0%}",
        f"{median(alone):.0f} ms alone ({min(alone):.0f} to {max(alone):.0f}), {median(with_slow):.0f} ms with them "
        f"({min(with_slow):.0f} to {max(with_slow):.0f}): {ratio - 1:+.0%}",
        met=ratio <= _BAR,
    )
    yield scenario.finding("the process survives", "it did" if alive else "it died", met=alive)


async def _in_turns(served: Served, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    alone, with_slow = [], []
    for _ in range(rounds):
        alone.append(await _p99_ms(served, seconds))
        async with _slow_clients(served.address):
            with_slow.append(await _p99_ms(served, seconds))
        await served.vitals_at_rest()
    return alone, with_slow


async def _p99_ms(served: Served, seconds: float) -> float:
    report = await asyncio.to_thread(flood, served, clients=_CLIENTS, closed_s=seconds)
    if report["closed"]["statuses"].keys() != {"200"}:
        raise RuntimeError(f"not every request was answered with 200: {report['closed']['statuses']}")
    return float(report["closed"]["accepted"]["p99_ms"])


@asynccontextmanager
async def _slow_clients(address: Address) -> AsyncIterator[None]:
    """Keep all slow connections open until the block ends, and reopen those that the server closes."""
    connected = asyncio.Semaphore(0)
    opening = asyncio.Semaphore(_AT_ONCE)

    async def one(*, trickles: bool) -> None:
        first = True
        while True:
            async with Connection(address) as connection:
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
    for position in range(len(_HEAD)):
        await connection.send(_HEAD[position : position + 1])
        await asyncio.sleep(_BYTE_EVERY_S)
