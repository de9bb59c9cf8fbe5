"""Measure what each shortcut on the way of a request gains: `python -m benchmarks.fast_paths`.

For each, two servers run at once, one without the shortcut, and serve a closed loop in alternating turns. Exits with
status 1 if a median gain is too small.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

from benchmarks.bench import Bench
from benchmarks.exchanges import Connections, Exchange
from benchmarks.pictures import draw_all
from benchmarks.processes import RunningServer, running
from benchmarks.servers import DEFAULT, MODELS, NULL, NULL_SERVER, SERVERS, ServerSpec


@dataclass(frozen=True, slots=True)
class Turn:
    """One server's turn: seconds, its CPU seconds, and the number of answers by status."""

    seconds: float
    cpu_seconds: float
    statuses: Mapping[int, int]


def _requests_per_cpu_second(turn: Turn) -> float:
    # Where the server's CPU is the limit, images/s are proportional to this, which varies less on a busy machine.
    return turn.statuses[HTTPStatus.OK] / turn.cpu_seconds


def _refusals_per_second(turn: Turn) -> float:
    return turn.statuses[HTTPStatus.TOO_MANY_REQUESTS] / turn.seconds


@dataclass(frozen=True, slots=True)
class FastPath:
    """A shortcut: Python code that takes it out of a server, the load, what counts, and the least gain."""

    removal: str
    server: str
    model: str
    connections: int
    figure: Callable[[Turn], float]
    unit: str
    least_gain: float
    expected: frozenset[int] = frozenset({HTTPStatus.OK})
    environment: Mapping[str, str] = field(default_factory=dict)


FAST_PATHS = {
    # app/api/api_route.py, against FastAPI's own handlers.
    "ImageRoute": FastPath(
        """
from app.api.api_route import ApiRoute, ImageRoute
ImageRoute._handler = ApiRoute._handler
del ImageRoute.__init__
""",
        NULL_SERVER,
        NULL,
        connections=32,
        figure=_requests_per_cpu_second,
        unit="images per CPU second",
        least_gain=1.05,
    ),
    # models/interface/admission.py: without it, requests whose heads arrive together are refused by the application.
    "announced images": FastPath(
        """
from models.interface.admission import Admission
Admission.announce = lambda admission: admission.overload(1)
""",
        DEFAULT,
        MODELS[0],
        connections=64,
        figure=_refusals_per_second,
        unit="refusals/s",
        least_gain=1.15,
        expected=frozenset({HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS}),
        environment={"GRADLESS_QUEUE_CAPACITY": "8", "GRADLESS_MAX_IMAGES_PER_REQUEST": "8"},
    ),
}


def _turn(server: RunningServer, path: FastPath, bodies: Sequence[bytes], seconds: float) -> Turn:
    server.wait_until_idle()
    cpu_before, started_at = server.cpu_seconds(), perf_counter()
    statuses = asyncio.run(_closed_loop(server.url, path.connections, bodies, seconds))
    if not statuses.keys() <= path.expected:
        raise RuntimeError(f"requests were answered with {sorted(statuses)}")
    return Turn(perf_counter() - started_at, server.cpu_seconds() - cpu_before, statuses)


async def _closed_loop(url: str, count: int, bodies: Sequence[bytes], seconds: float) -> Counter[int]:
    """Send a request on each connection as soon as the previous one is answered. Return the number of answers by
    status."""
    address = urlsplit(url)
    head = f"POST {address.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: "
    wires = cycle([f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies])
    connections = Connections(address.hostname or "", address.port or 0, frozenset())
    ends_at = perf_counter() + seconds
    statuses: Counter[int] = Counter()

    def send_next(exchange: Exchange) -> None:
        statuses[exchange.status] += 1
        if perf_counter() < ends_at:
            connections.send(Exchange(perf_counter(), next(wires), send_next))

    for _ in range(count):
        connections.send(Exchange(perf_counter(), next(wires), send_next))
    await asyncio.sleep(seconds)
    await connections.all_ended(timeout_s=60)
    connections.close()
    return statuses


def _without(path: FastPath) -> tuple[ServerSpec, ServerSpec]:
    """Return the specs of the server with the shortcut and without it."""
    spec = SERVERS[path.server]
    spec = replace(spec, environment={**spec.environment, **path.environment})
    return spec, replace(
        spec, name=f"{spec.name} without", command=("-c", f"{path.removal}\nfrom app.cli import main\nmain()", "serve")
    )


def _median_gain(name: str, turns: int, seconds: float) -> float:
    path = FAST_PATHS[name]
    with_path, without_path = _without(path)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(draw_all(Path(folder)), Path(sys.executable), Path(folder) / "logs")
        bodies = [picture.read_bytes() for picture in bench.usual]
        with running(with_path, path.model, bench) as ours, running(without_path, path.model, bench) as theirs:
            pairs = [
                tuple(path.figure(_turn(server, path, bodies, seconds)) for server in (ours, theirs))
                for _ in range(turns)
            ]
    gain = median(one / other for one, other in pairs)
    figures = [median(figures) for figures in zip(*pairs, strict=True)]
    sys.stdout.write(f"{name}: {figures[0]:.0f} {path.unit}, {figures[1]:.0f} without; gain {gain:.3f}\n")
    return gain


def main() -> None:
    """Measure, print the medians, and exit with status 1 if a gain is too small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*FAST_PATHS, []], default=[], help="all by default")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.6, help="of one turn of one server")
    options = parser.parse_args()
    gains = {name: _median_gain(name, options.turns, options.seconds) for name in options.names or FAST_PATHS}
    if any(gain < FAST_PATHS[name].least_gain for name, gain in gains.items()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
