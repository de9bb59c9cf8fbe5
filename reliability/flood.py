"""Send more requests than a server can answer: `python -m reliability.flood HOST PORT FILE`.

First a closed loop, whose rate is the server's capacity; then, with --factor, that many times as many by an open loop
(Poisson), regardless of answers; then a closed loop again at once. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import uvloop

from benchmarks.exchanges import Connections, Exchange
from benchmarks.open_loop import schedule
from benchmarks.statistic import latency_summary, steady_rate
from observe import ROOT
from reliability.pictures import draw_pictures
from reliability.serving import Served
from reliability.wire import CLASSIFY, Address, post

_OK = 200
_REFUSED = 429

# Refusals must have it.
_RETRY_AFTER = b"retry-after"

# Pause of a closed-loop client after a refusal.
_BACK_OFF_S = 0.1
# Answers to the last requests of the open loop.
_TIMEOUT_S = 60.0
# First batches form, caches fill.
_WARM_S = 3.0
# For the start of the process and the last answers.
_SPARE_S = 120.0


def flood(
    served: Served,
    *,
    clients: int,
    closed_s: float,
    factor: float = 0.0,
    open_s: float = 0.0,
    after_s: float = 0.0,
) -> dict[str, Any]:
    """Run this module in a process of its own and return its report.

    Raises subprocess.CalledProcessError, subprocess.TimeoutExpired.
    """
    with tempfile.NamedTemporaryFile(suffix=".jpg") as image:
        Path(image.name).write_bytes(draw_pictures().clock)
        command = [sys.executable, "-m", "reliability.flood", served.address.host, str(served.address.port), image.name]
        command += ["--clients", str(clients), "--closed-seconds", str(closed_s), "--factor", str(factor)]
        command += ["--seconds", str(open_s), "--after-seconds", str(after_s)]
        done = subprocess.run(  # noqa: S603 - composed above
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=closed_s + open_s + after_s + _SPARE_S
        )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


class Flood:
    """All requests of one run, in one pool of connections."""

    def __init__(self, address: Address, wire: bytes) -> None:
        self._connections = Connections(address.host, address.port, frozenset({_RETRY_AFTER}))
        self._wire = wire
        self.exchanges: list[Exchange] = []
        self.succeeded_at: list[float] = []

    def send(self, scheduled_at: float, then: Callable[[Exchange], None] = lambda _exchange: None) -> None:
        """Send one request and pass its end to `then`."""

        def ended(exchange: Exchange) -> None:
            self.exchanges.append(exchange)
            if exchange.status == _OK:
                self.succeeded_at.append(exchange.ended_at)
            then(exchange)

        self._connections.send(Exchange(scheduled_at, self._wire, ended))

    async def closed_loop(self, clients: int, seconds: float) -> None:
        """Each client sends its next request when the last is answered."""
        until = perf_counter() + seconds
        loop = asyncio.get_running_loop()

        def again(exchange: Exchange | None) -> None:
            if perf_counter() >= until:
                return
            if exchange is not None and exchange.status != _OK:
                loop.call_later(_BACK_OFF_S, again, None)
            else:
                self.send(perf_counter(), again)

        for _ in range(clients):
            again(None)
        await asyncio.sleep(seconds)

    async def open_loop(self, rate: float, seconds: float) -> None:
        """Send requests at random moments without waiting for answers."""
        moments = schedule(rate, seconds, seed=0)
        began = perf_counter()
        for moment in moments:
            await asyncio.sleep(max(0.0, began + moment - perf_counter()))
            self.send(began + moment)

    async def all_ended(self) -> None:
        """Wait for every answer. Raises TimeoutError."""
        await self._connections.all_ended(_TIMEOUT_S)


async def run(load: Flood, options: argparse.Namespace) -> dict[str, Any]:
    """Run all phases and return a summary of each."""
    await load.closed_loop(options.clients, _WARM_S)
    began = perf_counter()
    before = len(load.exchanges)
    await load.closed_loop(options.clients, options.closed_seconds)
    ended = perf_counter()
    capacity = steady_rate(load.succeeded_at, began, ended)
    closed = {**_phase(load.exchanges[before:]), "per_second": capacity}
    await load.all_ended()
    if not options.factor:
        return {"closed": closed}
    before, cpu_before, began = len(load.exchanges), process_time(), perf_counter()
    await load.open_loop(options.factor * capacity, options.seconds)
    ended, cpu_seconds = perf_counter(), process_time() - cpu_before
    await load.closed_loop(options.clients, options.after_seconds)
    await load.all_ended()
    flooded = [exchange for exchange in load.exchanges[before:] if began <= exchange.scheduled_at < ended]
    return {
        "closed": closed,
        "open": {
            **_phase(flooded),
            "offered_per_second": len(flooded) / (ended - began),
            "per_second": steady_rate(load.succeeded_at, began + min(_WARM_S, options.seconds / 4), ended),
            "generator_cores": cpu_seconds / (ended - began),
        },
        # Answers to the last requests of the flood count too.
        "after": {"per_second": steady_rate(load.succeeded_at, ended + 1, ended + options.after_seconds)},
    }


def _phase(exchanges: list[Exchange]) -> dict[str, Any]:
    refused = [exchange for exchange in exchanges if exchange.status == _REFUSED]
    return {
        "statuses": dict(Counter(str(exchange.status) for exchange in exchanges)),
        "accepted": latency_summary([exchange.latency_ms for exchange in exchanges if exchange.status == _OK]),
        # From the moment of sending.
        "refused": latency_summary([exchange.answer_ms for exchange in refused]),
        "out_of_form": sum(_RETRY_AFTER not in exchange.fields for exchange in refused),
        "late": latency_summary([exchange.late_ms for exchange in exchanges]),
    }


def main() -> None:
    """The command line, as `flood` composes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("image", type=Path)
    parser.add_argument("--clients", type=int, default=64, help="of the closed loop")
    parser.add_argument("--closed-seconds", type=float, default=10.0)
    parser.add_argument("--factor", type=float, default=0.0, help="times the capacity; 0: no open loop")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the open loop")
    parser.add_argument("--after-seconds", type=float, default=6.0)
    options = parser.parse_args()
    wire = post(CLASSIFY, options.image.read_bytes()).wire

    # A garbage collection over 200,000 kept exchanges would add to their latencies.
    gc.disable()

    async def run_flood() -> dict[str, Any]:
        return await run(Flood(Address(options.host, options.port), wire), options)

    sys.stdout.write(json.dumps(uvloop.run(run_flood())) + "\n")


if __name__ == "__main__":
    main()
