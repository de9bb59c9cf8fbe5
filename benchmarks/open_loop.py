"""Open-loop load: requests are sent at the moments of a Poisson process, regardless of answers.

Latencies count from the scheduled moment, so that neither a slow server nor a late client hides waiting; latencies of
refusals (429) count from the moment of sending. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from urllib.parse import SplitResult, urlsplit

import uvloop

from benchmarks.exchanges import Connections, Exchange
from benchmarks.statistic import latency_summary, steady_rate

# The Server-Timing parts of gradless's answers, in ms.
Stages = dict[str, float]

_OK = 200
_REFUSED = 429

_STAGES = b"server-timing"


class Recorder:
    """Results of the requests sent from `counts_from` on."""

    def __init__(self, counts_from: float, timeout_s: float) -> None:
        self.counts_from = counts_from
        self.statuses: Counter[str] = Counter()
        self.failed = 0
        self.latencies_ms: list[float] = []
        self.refusals_ms: list[float] = []
        # Of all requests, for the rate.
        self.succeeded_at: list[float] = []
        self.late_ms: list[float] = []
        self.stages_ms: defaultdict[str, list[float]] = defaultdict(list)
        self.last_answer_at = 0.0
        self.cpu_before = process_time()
        self._timeout_s = timeout_s

    def ended(self, exchange: Exchange) -> None:
        """Record a request, answered or not."""
        in_time = exchange.answer_ms <= self._timeout_s * 1e3
        if in_time and exchange.status == _OK:
            self.succeeded_at.append(exchange.ended_at)
        self.last_answer_at = exchange.ended_at
        if exchange.scheduled_at < self.counts_from:
            return
        self.late_ms.append(exchange.late_ms)
        if not in_time or not exchange.status:
            self.failed += 1
            return
        self.statuses[str(exchange.status)] += 1
        # Fast refusals must not lower the latency of answers.
        if exchange.status == _OK:
            self.latencies_ms.append(exchange.latency_ms)
            for name, duration_ms in parse_server_timing(exchange.fields.get(_STAGES, b"").decode()).items():
                self.stages_ms[name].append(duration_ms)
        elif exchange.status == _REFUSED:
            self.refusals_ms.append(exchange.answer_ms)

    def summary(self, seconds: float) -> dict[str, Any]:
        """Return a summary for JSON. The counted requests were sent within `seconds`."""
        return {
            # Answers after the last request do not count as capacity within `seconds`.
            "seconds": max(seconds, self.last_answer_at - self.counts_from),
            "steady_per_second": steady_rate(self.succeeded_at, self.counts_from, self.counts_from + seconds),
            "statuses": dict(self.statuses),
            "failed": self.failed,
            "succeeded": len(self.latencies_ms),
            **latency_summary(self.latencies_ms),
            "refusals": latency_summary(self.refusals_ms),
            # Excludes the start of the interpreter.
            "cpu_seconds": process_time() - self.cpu_before,
            "late_p99_ms": latency_summary(self.late_ms)["p99_ms"],
            "stages_ms": {name: sum(values) / len(values) for name, values in self.stages_ms.items()},
        }


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Return moments in s from the start of a Poisson process of `rate` a second."""
    source = random.Random(seed)  # noqa: S311 - a load, no secret
    moments: list[float] = []
    moment = source.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += source.expovariate(rate)
    return moments


def parse_server_timing(header: str) -> Stages:
    """Parse `decode;dur=1.2, queue;dur=0.1` into {"decode": 1.2, "queue": 0.1}."""
    stages: Stages = {}
    for part in header.split(","):
        name, _, duration = part.strip().partition(";dur=")
        if duration:
            stages[name] = float(duration)
    return stages


async def run(
    url: str,
    bodies: Sequence[bytes],
    moments: Sequence[float],
    *,
    counts_from: float,
    seconds: float,
    timeout_s: float,
    headers: Sequence[str] = (),
) -> str:
    """Send at `moments` (s from the start), wait for every answer, and return the summary of those from `counts_from`
    on, which are sent within `seconds`."""
    place = urlsplit(url)
    connections = Connections(place.hostname or "", place.port or 80, frozenset({_STAGES}))
    wires = [ready_made(place, body, headers) for body in bodies]
    started_at = perf_counter()
    recorder = Recorder(started_at + counts_from, timeout_s)
    for number, moment in enumerate(moments):
        await asyncio.sleep(max(0.0, started_at + moment - perf_counter()))
        connections.send(Exchange(started_at + moment, wires[number % len(wires)], recorder.ended))
    try:
        await connections.all_ended(timeout_s)
    except TimeoutError:
        recorder.failed += connections.under_way
    connections.close()
    return json.dumps(recorder.summary(seconds))


def ready_made(place: SplitResult, body: bytes, headers: Sequence[str] = ()) -> bytes:
    """Return a complete request; `headers` are lines."""
    target = place.path + (f"?{place.query}" if place.query else "")
    about = "\r\n".join(["Content-Type: image/jpeg", f"Content-Length: {len(body)}", *headers])
    return f"POST {target} HTTP/1.1\r\nHost: {place.netloc}\r\n{about}\r\n\r\n".encode() + body


def main() -> None:
    """Run with arguments from benchmarks.load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60.0, help="maximum s of a request")
    parser.add_argument("--filling", type=int, default=0, help="requests beforehand, which do not count")
    parser.add_argument("--filling-seconds", type=float, default=0.0, help="s in which they leave, evenly")
    parser.add_argument("--header", action="append", default=[], help="'Name: value' that goes with each request")
    parser.add_argument("bodies", type=Path, nargs="+", help="files to send")
    options = parser.parse_args()
    bodies = [path.read_bytes() for path in options.bodies]
    beforehand = [options.filling_seconds * number / options.filling for number in range(options.filling)]
    moments = [options.filling_seconds + moment for moment in schedule(options.rate, options.seconds, options.seed)]
    summary = run(
        options.url,
        bodies,
        [*beforehand, *moments],
        counts_from=options.filling_seconds,
        seconds=options.seconds,
        timeout_s=options.timeout,
        headers=options.header,
    )
    sys.stdout.write(uvloop.run(summary) + "\n")


if __name__ == "__main__":
    main()
