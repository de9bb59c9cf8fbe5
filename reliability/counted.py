"""A server's counts, read from its metrics, and the statuses that its OpenAPI document names."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from reliability.wire import METRICS, Address, Connection, get

# A route and a status.
Statuses = Counter[tuple[str, int]]

_POLL_S = 0.05


class Counted(NamedTuple):
    """Requests by route and status, and by method and protocol too; images by outcome, and images in flight."""

    requests: Statuses
    by_protocol: Counter[tuple[str, str, str, int]]
    images: Counter[str]
    in_flight: float


async def metric_families(address: Address) -> Iterable[Metric]:
    """Scrape the metrics once. Raises OSError, EOFError."""
    async with Connection(address) as connection:
        exposition = (await connection.answer_to(get(METRICS))).body.decode()
    return text_string_to_metric_families(exposition)


async def counted(address: Address) -> Counted:
    """Return the counts since the server's start, without this scrape. Raises OSError, EOFError."""
    requests: Statuses = Counter()
    by_protocol: Counter[tuple[str, str, str, int]] = Counter()
    images: Counter[str] = Counter()
    in_flight = 0.0
    for family in await metric_families(address):
        for sample in family.samples:
            if sample.name == "gradless_requests_total":
                labels, status = sample.labels, int(sample.labels["code"])
                requests[labels["route"], status] += int(sample.value)
                by_protocol[labels["contract"], labels["method"], labels["route"], status] += int(sample.value)
            elif sample.name == "gradless_images_total":
                images[sample.labels["outcome"]] += int(sample.value)
            elif sample.name == "gradless_in_flight_images":
                in_flight += sample.value
    return Counted(+requests, +by_protocol, +images, in_flight)


async def counted_at_rest(address: Address, routes: frozenset[str], requests: int, timeout_s: float = 60.0) -> Counted:
    """Return the counts once that many requests of `routes` ended and no image is in flight, or after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        now = await counted(address)
        ended = sum(count for (route, _), count in now.requests.items() if route in routes)
        if (ended >= requests and not now.in_flight) or loop.time() > deadline:
            return now
        await asyncio.sleep(_POLL_S)


async def documented_statuses(address: Address) -> dict[str, frozenset[int]]:
    """Return the documented statuses of each POST route."""
    async with Connection(address) as connection:
        described = json.loads((await connection.answer_to(get("/openapi.json"))).body)
    return {
        route: frozenset(int(status) for status in methods["post"]["responses"] if status.isdecimal())
        for route, methods in described["paths"].items()
        if "post" in methods
    }
