"""Measure what ImageRoute (app/api/api_route.py) gains over FastAPI's own handlers: `python -m benchmarks.image_route`.

Two servers of the null model run at once, one with each kind of handler, and serve 32 connections in alternating turns.
Where the CPU is the limit, images/s are inversely proportional to CPU time per request, which varies less than images/s
on a busy machine. Exits with status 1 if the median gain is under 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from urllib.parse import urlsplit

from benchmarks.bench import Bench
from benchmarks.exchanges import Connections, Exchange
from benchmarks.pictures import draw_all
from benchmarks.processes import RunningServer, running
from benchmarks.servers import NULL, NULL_SERVER, SERVERS

_CONNECTIONS = 32
_LEAST_GAIN = 1.05

_FASTAPI_HANDLERS = """
from app.api.api_route import ApiRoute, ImageRoute
ImageRoute._handler = ApiRoute._handler
from app.cli import main
main()
"""


def _cpu_ms_per_request(server: RunningServer, bodies: Sequence[bytes], seconds: float) -> float:
    """CPU time of server and client per request of a closed loop, in ms."""
    server.wait_until_idle()
    server_before, client_before = server.cpu_seconds(), process_time()
    requests = asyncio.run(_closed_loop(server.url, bodies, seconds))
    return (server.cpu_seconds() - server_before + process_time() - client_before) / requests * 1e3


async def _closed_loop(url: str, bodies: Sequence[bytes], seconds: float) -> int:
    """Send a request on each connection as soon as the previous one is answered. Return how many were answered.

    Raises RuntimeError if one was not answered with 200.
    """
    address = urlsplit(url)
    head = f"POST {address.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: "
    wires = cycle([f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies])
    connections = Connections(address.hostname or "", address.port or 0, frozenset())
    ends_at = perf_counter() + seconds
    answered = 0
    statuses: set[int] = set()

    def send_next(exchange: Exchange) -> None:
        nonlocal answered
        answered += 1
        statuses.add(exchange.status)
        if perf_counter() < ends_at:
            connections.send(Exchange(perf_counter(), next(wires), send_next))

    for _ in range(_CONNECTIONS):
        connections.send(Exchange(perf_counter(), next(wires), send_next))
    await asyncio.sleep(seconds)
    await connections.all_ended(timeout_s=60)
    connections.close()
    if statuses != {HTTPStatus.OK}:
        raise RuntimeError(f"requests were answered with {sorted(statuses)}")
    return answered


def main() -> None:
    """Measure, print the medians, and exit with status 1 if the gain is too small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.6, help="of one turn of one server")
    options = parser.parse_args()
    own = SERVERS[NULL_SERVER]
    fastapi = replace(own, name=f"{NULL_SERVER}, FastAPI's handlers", command=("-c", _FASTAPI_HANDLERS, "serve"))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(draw_all(Path(folder)), Path(sys.executable), Path(folder) / "logs")
        bodies = [path.read_bytes() for path in bench.usual]
        with running(own, NULL, bench) as with_image_route, running(fastapi, NULL, bench) as without:
            pairs = [
                (
                    _cpu_ms_per_request(with_image_route, bodies, options.seconds),
                    _cpu_ms_per_request(without, bodies, options.seconds),
                )
                for _ in range(options.turns)
            ]
    gain = median(theirs / ours for ours, theirs in pairs)
    for name, times in zip((own.name, fastapi.name), zip(*pairs, strict=True), strict=True):
        sys.stdout.write(f"{name}: {median(times):.3f} ms of CPU per request\n")
    sys.stdout.write(f"gain: {gain:.3f}\n")
    if gain < _LEAST_GAIN:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
