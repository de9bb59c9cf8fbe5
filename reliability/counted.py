"""What a server has counted, read from its metrics, and which statuses its OpenAPI documents."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from reliability.wire import METRICS, Connection, Place, get

# A route and a status.
Statuses = Counter[tuple[str, int]]

_LOOKING_S = 0.05


class Counted(NamedTuple):
    """Requests by route and status, images by outcome, and those that are still inside."""

    requests: Statuses
    images: Counter[str]
    in_flight: float


async def metric_families(place: Place) -> Iterable[Metric]:
    """What it exposes, by one scrape. Raises OSError, EOFError."""
    async with Connection(place) as connection:
        exposition = (await connection.answer_to(get(METRICS))).body.decode()
    return text_string_to_metric_families(exposition)


async def counted(place: Place) -> Counted:
    """Since the server's start. The scrape itself is not among them. Raises OSError, EOFError."""
    requests: Statuses = Counter()
    images: Counter[str] = Counter()
    in_flight = 0.0
    for family in await metric_families(place):
        for sample in family.samples:
            if sample.name == "gradless_requests_total":
                requests[sample.labels["route"], int(sample.labels["code"])] += int(sample.value)
            elif sample.name == "gradless_images_total":
                images[sample.labels["outcome"]] += int(sample.value)
            elif sample.name == "gradless_in_flight_images":
                in_flight += sample.value
    return Counted(+requests, +images, in_flight)


async def counted_at_rest(place: Place, routes: frozenset[str], requests: int, timeout_s: float = 60.0) -> Counted:
    """Once that many requests of `routes` have ended and no image is inside; whatever is so after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        now = await counted(place)
        ended = sum(count for (route, _), count in now.requests.items() if route in routes)
        if (ended >= requests and not now.in_flight) or loop.time() > deadline:
            return now
        await asyncio.sleep(_LOOKING_S)


async def documented_statuses(place: Place) -> dict[str, frozenset[int]]:
    """Those of each POST route that OpenAPI names."""
    async with Connection(place) as connection:
        described = json.loads((await connection.answer_to(get("/openapi.json"))).body)
    return {
        route: frozenset(int(status) for status in methods["post"]["responses"] if status.isdecimal())
        for route, methods in described["paths"].items()
        if "post" in methods
    }
