"""Closed loop of gRPC calls over several connections, a process of its own. Prints one line of JSON, as rotate.lua."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import grpc
import grpc.aio

from benchmarks.statistic import latency_summary, steady_rate

# Otherwise channels to one address share a connection.
_CONNECTION_OF_ITS_OWN = [("grpc.use_local_subchannel_pool", 1)]


class _Recorder:
    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self.answered_at: list[float] = []

    def ended(self, code: grpc.StatusCode, sent_at: float) -> None:
        self.statuses[code.name] += 1
        if code is grpc.StatusCode.OK:
            now = perf_counter()
            self.answered_at.append(now)
            self.latencies_ms.append((now - sent_at) * 1e3)


async def run(
    address: str, method: str, messages: Sequence[bytes], *, connections: int, seconds: float, warm_s: float
) -> dict[str, Any]:
    """Call `method` with serialized `messages` on each connection as soon as the previous call has ended. Calls that
    are under way after `seconds` are cancelled. The rate is of the time after `warm_s`."""
    recorder, sent = _Recorder(), cycle(messages)
    cpu_before, started_at = process_time(), perf_counter()
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(_calls(address, method, sent, recorder) for _ in range(connections)))
    except TimeoutError:
        cpu_seconds = process_time() - cpu_before
    return {
        "seconds": perf_counter() - started_at,
        "steady_per_second": steady_rate(recorder.answered_at, started_at + warm_s, started_at + seconds),
        "statuses": dict(recorder.statuses),
        "succeeded": len(recorder.answered_at),
        **latency_summary(recorder.latencies_ms),
        "cpu_seconds": cpu_seconds,
    }


async def _calls(address: str, method: str, messages: Iterator[bytes], recorder: _Recorder) -> None:
    async with grpc.aio.insecure_channel(address, options=_CONNECTION_OF_ITS_OWN) as channel:
        await channel.channel_ready()
        call = channel.unary_unary(method)
        while True:
            sent_at = perf_counter()
            try:
                await call(next(messages))
            except grpc.aio.AioRpcError as error:
                recorder.ended(error.code(), sent_at)
            else:
                recorder.ended(grpc.StatusCode.OK, sent_at)


def main() -> None:
    """Run with arguments from benchmarks.load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT")
    parser.add_argument("--method", required=True, help="/SERVICE/METHOD")
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-seconds", type=float, required=True, help="s that do not count for the rate")
    parser.add_argument("messages", type=Path, nargs="+", help="files of serialized messages to send")
    options = parser.parse_args()
    report = run(
        options.address,
        options.method,
        [path.read_bytes() for path in options.messages],
        connections=options.connections,
        seconds=options.seconds,
        warm_s=options.warm_seconds,
    )
    sys.stdout.write(json.dumps(asyncio.run(report)) + "\n")


if __name__ == "__main__":
    main()
