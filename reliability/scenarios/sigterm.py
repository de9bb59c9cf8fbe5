"""SIGTERM under full load: each request sent before the signal is answered."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from statistics import median
from time import perf_counter
from typing import NamedTuple

from reliability.finding import Finding, Scenario
from reliability.grpc_wire import GrpcConnection
from reliability.known import format_statuses, known_image
from reliability.pictures import draw_pictures
from reliability.protocols import INFER, KINDS
from reliability.scale import Scale
from reliability.serving import DRAIN_TIMEOUT_S, NULL_MODEL, Served, serving
from reliability.wire import CLASSIFY, Connection, Request, post

_CLIENTS = 32
_LOAD_S = (0.3, 0.8)
_SPARE_S = 5.0


class _Ended(NamedTuple):
    status: int
    seconds: float
    before: Counter[int]
    # Sent before the signal and not answered.
    lost: int
    after: Counter[int]


class _Signalled:
    """Time of the signal, and the answers before and after it."""

    def __init__(self) -> None:
        self.at = float("inf")
        self.before: Counter[int] = Counter()
        self.after: Counter[int] = Counter()
        self.lost = 0


def measure(scale: Scale) -> Iterator[Finding]:
    """Start a server of the null model for each signal."""
    times = scale.sigterms
    scenario = Scenario("sigterm", f"SIGTERM under the load of {_CLIENTS} clients, {times} times")
    # The cheapest image, for many requests.
    requests = [post(CLASSIFY, draw_pictures().small)]
    yield from _findings(scenario, times, requests)


def measure_protocols(scale: Scale) -> Iterator[Finding]:
    """Send all protocols, every other time to HTTP workers."""
    times = max(2, scale.sigterms // 6)
    requests = [kind.request([known_image(0)]) for kind in KINDS]
    load = f"SIGTERM, all protocols from {_CLIENTS} HTTP and {_CLIENTS} gRPC clients, batches of 100 ms, {times} times"
    # Most requests are then in work when the signal comes.
    settings = {
        "GRADLESS_GRPC_PORT": "0",
        "GRADLESS_MAX_BATCH_DELAY_MS": "100",
        # Room for a slow message of each gRPC client: half of the messages may come from one address.
        "GRADLESS_MAX_HELD_BYTES": str(4 * _CLIENTS * 64 * 2**20),
    }
    yield from _findings(
        Scenario("sigterm-protocols", load), times, requests, settings, {**settings, "GRADLESS_HTTP_WORKERS": "2"}
    )


def _findings(
    scenario: Scenario, times: int, requests: Sequence[Request], *settings: dict[str, str]
) -> Iterator[Finding]:
    """Use each of `settings` in turn."""
    source = random.Random(0)  # noqa: S311 - a load, no secret
    ended = []
    for number in range(times):
        with serving(NULL_MODEL, **(settings[number % len(settings)] if settings else {})) as served:
            ended.append(asyncio.run(_end(served, requests, source.uniform(*_LOAD_S))))
    before: Counter[int] = sum((one.before for one in ended), Counter())
    after: Counter[int] = sum((one.after for one in ended), Counter())
    lost = sum(one.lost for one in ended)
    yield scenario.finding(
        "no request sent before the signal is lost",
        f"{before.total():,} answered ({format_statuses(before)}), {lost} lost; "
        f"sent after it: {format_statuses(after)}",
        met=not lost and before.keys() <= {200, 503},
    )
    statuses = Counter(one.status for one in ended)
    yield scenario.finding("the process exits with status 0", format_statuses(statuses), met=statuses.keys() == {0})
    seconds = [one.seconds for one in ended]
    yield scenario.finding(
        f"within the drain time of {DRAIN_TIMEOUT_S} s",
        f"median {median(seconds):.2f} s, longest {max(seconds):.2f} s",
        met=max(seconds) <= DRAIN_TIMEOUT_S,
    )


async def _end(served: Served, requests: Sequence[Request], load_s: float) -> _Ended:
    signalled = _Signalled()
    over_grpc = [request for request in requests if request.route == INFER.path]
    over_http = [request for request in requests if request.route != INFER.path]
    connections: list[tuple[Connection | GrpcConnection, Sequence[Request]]] = [
        (Connection(served.address), over_http) for _ in range(_CLIENTS)
    ]
    if over_grpc:
        address = await asyncio.to_thread(served.grpc_address)
        connections += [(GrpcConnection(address), over_grpc) for _ in range(_CLIENTS)]

    connected = asyncio.Barrier(len(connections) + 1)

    async def call(connection: Connection | GrpcConnection, requests: Sequence[Request], first: int) -> None:
        async with connection:
            # A request is in the server's socket buffers once it is sent over an open connection.
            await connection.answer_to(requests[first % len(requests)])
            await connected.wait()
            for number in count(first):
                sent_at = perf_counter()
                try:
                    answer = await connection.answer_to(requests[number % len(requests)])
                except (OSError, EOFError):
                    # A request sent after the signal may be refused by closing the connection.
                    signalled.lost += sent_at < signalled.at
                    return
                (signalled.before if sent_at < signalled.at else signalled.after)[answer.status] += 1
                if sent_at >= signalled.at:
                    # Going on would only extend the stop.
                    return

    async with asyncio.TaskGroup() as clients:
        for number, (connection, repeated) in enumerate(connections):
            clients.create_task(call(connection, repeated, number))
        await connected.wait()
        await asyncio.sleep(load_s)
        # No client runs between these two lines, so earlier requests are in the server's socket buffers.
        signalled.at = perf_counter()
        served.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(served.process.wait, DRAIN_TIMEOUT_S + _SPARE_S)
        seconds = perf_counter() - signalled.at
    return _Ended(status, seconds, signalled.before, signalled.lost, signalled.after)
