"""Open-loop load on aiohttp: requests leave at the moments of a Poisson process, whatever has been answered.

A latency counts from the scheduled moment, so that neither a slow server nor a late client hides waiting; that of a
refusal (429) from the moment of sending: how fast a server says no. Prints one line of JSON.
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

import aiohttp

from benchmarks.statistic import latency_summary, steady_rate

# The Server-Timing parts of gradless's answers, in ms.
Stages = dict[str, float]

_OK = 200
_REFUSED = 429


class Recorder:
    """What became of the requests that left from `counts_from` on."""

    def __init__(self, counts_from: float) -> None:
        self.counts_from = counts_from
        self.statuses: Counter[str] = Counter()
        self.failed = 0
        self.latencies_ms: list[float] = []
        self.refusals_ms: list[float] = []
        # Of all requests: a rate knows no first one.
        self.succeeded_at: list[float] = []
        self.late_ms: list[float] = []
        self.stages_ms: defaultdict[str, list[float]] = defaultdict(list)
        self.last_answer_at = 0.0
        self.cpu_before = process_time()

    def answered(self, status: int, scheduled_at: float, sent_at: float, server_timing: str) -> None:
        """One answer, whole, just now."""
        now = perf_counter()
        self.last_answer_at = now
        if status == _OK:
            self.succeeded_at.append(now)
        if scheduled_at < self.counts_from:
            return
        self.statuses[str(status)] += 1
        # A quick refusal is no quick answer.
        if status == _OK:
            self.latencies_ms.append((now - scheduled_at) * 1e3)
            for name, duration_ms in parse_server_timing(server_timing).items():
                self.stages_ms[name].append(duration_ms)
        elif status == _REFUSED:
            self.refusals_ms.append((now - sent_at) * 1e3)

    def summary(self, seconds: float) -> dict[str, Any]:
        """Everything by name, ready for JSON. `seconds` in which the counted requests left."""
        return {
            # Answers that came after the last request left are not capacity within `seconds`.
            "seconds": max(seconds, self.last_answer_at - self.counts_from),
            "steady_per_second": steady_rate(self.succeeded_at, self.counts_from, self.counts_from + seconds),
            "statuses": dict(self.statuses),
            "failed": self.failed,
            "succeeded": len(self.latencies_ms),
            **latency_summary(self.latencies_ms),
            "refusals": latency_summary(self.refusals_ms),
            # Without the start of the interpreter.
            "cpu_seconds": process_time() - self.cpu_before,
            "late_p99_ms": latency_summary(self.late_ms)["p99_ms"],
            "stages_ms": {name: sum(values) / len(values) for name, values in self.stages_ms.items()},
        }


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments in s from the start, `rate` a second on average, independent of one another."""
    source = random.Random(seed)  # noqa: S311 - a load, no secret
    moments: list[float] = []
    moment = source.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += source.expovariate(rate)
    return moments


def parse_server_timing(header: str) -> Stages:
    """`decode;dur=1.2, queue;dur=0.1` to {"decode": 1.2, "queue": 0.1}."""
    stages: Stages = {}
    for part in header.split(","):
        name, _, duration = part.strip().partition(";dur=")
        if duration:
            stages[name] = float(duration)
    return stages


async def run(
    url: str, bodies: Sequence[bytes], moments: Sequence[float], *, counts_from: float, seconds: float, timeout_s: float
) -> str:
    """Send at `moments`, s from the start; wait for every answer; return as JSON the summary of those from
    `counts_from` on, which left within `seconds`."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=timeout_s)
    ) as session:
        started_at = perf_counter()
        recorder = Recorder(started_at + counts_from)
        async with asyncio.TaskGroup() as requests:
            for number, moment in enumerate(moments):
                await asyncio.sleep(max(0.0, started_at + moment - perf_counter()))
                requests.create_task(_send(session, url, bodies[number % len(bodies)], started_at + moment, recorder))
    return json.dumps(recorder.summary(seconds))


async def _send(session: aiohttp.ClientSession, url: str, body: bytes, scheduled_at: float, recorder: Recorder) -> None:
    sent_at = perf_counter()
    recorder.late_ms.append((sent_at - scheduled_at) * 1e3)
    try:
        async with session.post(url, data=body, headers={"Content-Type": "image/jpeg"}) as answer:
            await answer.read()
            recorder.answered(answer.status, scheduled_at, sent_at, answer.headers.get("Server-Timing", ""))
    except (aiohttp.ClientError, TimeoutError):
        recorder.failed += scheduled_at >= recorder.counts_from


def main() -> None:
    """The command line, as benchmarks.load composes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60.0, help="s that a request may take")
    parser.add_argument("--filling", type=int, default=0, help="requests beforehand, which do not count")
    parser.add_argument("--filling-seconds", type=float, default=0.0, help="s in which they leave, evenly")
    parser.add_argument("bodies", type=Path, nargs="+", help="files to send")
    wanted = parser.parse_args()
    bodies = [path.read_bytes() for path in wanted.bodies]
    beforehand = [wanted.filling_seconds * number / wanted.filling for number in range(wanted.filling)]
    moments = [wanted.filling_seconds + moment for moment in schedule(wanted.rate, wanted.seconds, wanted.seed)]
    summary = run(
        wanted.url,
        bodies,
        [*beforehand, *moments],
        counts_from=wanted.filling_seconds,
        seconds=wanted.seconds,
        timeout_s=wanted.timeout,
    )
    sys.stdout.write(asyncio.run(summary) + "\n")


if __name__ == "__main__":
    main()
