"""All protocols at once: each request gets its own answer and is counted once, also when most are refused."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

from pydantic_core import from_json

from reliability.counted import Counted, counted_at_rest
from reliability.finding import Finding, Scenario
from reliability.grpc_wire import PUSHBACK, GrpcConnection
from reliability.known import format_counts, known_image, well_afterwards
from reliability.protocols import KINDS, TOLERANCE, Kind, NativeAnswers, native_answers
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, WORKERS, Served, serving
from reliability.wire import Answer, Connection, field

_REQUESTS = 20_000
_REQUESTS_OF_OVERLOAD = 10_000
_HTTP_CONNECTIONS, _GRPC_CONNECTIONS = 28, 4
# At once on each connection: together more images than an overloaded server takes, and fewer than one usually takes.
_CALLS = 12
_IMAGES = 64
# Numbers of images whose colours have different directions: protocols scale vectors to length 1.
_STEP = 1009
_MOST_IMAGES = 3
_DAMAGED_SHARE = 0.05
_DAMAGED_BYTES = 50
# Fewer images than are sent at once, and answered slowly enough that many find no room.
_CAPACITY = 32
# How many times the planned requests may be sent until each route has accepted and refused one.
_MOST_ROUNDS = 10
_OVERLOADED = {
    "GRADLESS_QUEUE_CAPACITY": str(_CAPACITY),
    "GRADLESS_MAX_IMAGES_PER_REQUEST": str(_MOST_IMAGES),
    "GRADLESS_MAX_BATCH_DELAY_MS": "150",
    "GRADLESS_MAX_BATCH_SIZE": "64",
}

_OK, _BAD, _BAD_FILE, _TOO_MANY = 200, 400, 422, 429
_TEXT = {"error": str}
# The keys of a refusal, and what their values are.
_REFUSALS: dict[str, dict[str, object]] = {
    "native": {
        "type": "urn:gradless:problem:overloaded",
        "title": str,
        "status": 429,
        "detail": str,
        "request_id": str,
    },
    "openai": {"error": {"message": str, "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}},
    "torchserve": {"code": 429, "type": "ServiceUnavailableException", "message": str},
}


class _Load:
    """Clients of all kinds, and the ends of their requests.

    With `overload`, requests may be refused, and are sent until each route has accepted and refused one.
    """

    def __init__(self, native: NativeAnswers, requests: int, *, overload: bool) -> None:
        self._native = native
        self._requests = requests
        self._overload = overload
        self._source = random.Random(0)  # noqa: S311 - a load, no secret
        self.ends: Counter[tuple[str, str, str, int]] = Counter()
        self.images: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    async def run(self, served: Served) -> None:
        """Send all requests."""
        grpc_kinds = [kind for kind in KINDS if kind.over_grpc]
        http_kinds = [kind for kind in KINDS if not kind.over_grpc]
        grpc_address = await asyncio.to_thread(served.grpc_address)
        calls = self._requests * _GRPC_CONNECTIONS // (_HTTP_CONNECTIONS + _GRPC_CONNECTIONS)
        over_http, over_grpc = self._planned(http_kinds, self._requests - calls), self._planned(grpc_kinds, calls)
        async with asyncio.TaskGroup() as group:
            for _ in range(_HTTP_CONNECTIONS):
                group.create_task(self._client(Connection(served.address), over_http, 1))
            for _ in range(_GRPC_CONNECTIONS):
                group.create_task(self._client(GrpcConnection(grpc_address), over_grpc, _CALLS))

    def lacking(self) -> list[str]:
        """Return the routes that have not accepted a request, or not refused one, each with the status it lacks."""
        routes = {(kind.contract, kind.method, kind.route) for kind in KINDS}
        return [
            f"{status} of {method} {route}"
            for contract, method, route in sorted(routes)
            for status in (_OK, _TOO_MANY)
            if not self.ends[contract, method, route, status]
        ]

    def _planned(self, kinds: Sequence[Kind], requests: int) -> Iterator[Kind]:
        """Yield that many kinds, each as often as the others; under overload more, while a route lacks a status."""
        planned = list(islice(cycle(kinds), requests))
        self._source.shuffle(planned)
        yield from planned
        while self._overload and self.lacking() and self.ends.total() < _MOST_ROUNDS * self._requests:
            yield self._source.choice(kinds)

    async def _client(self, connection: Connection | GrpcConnection, planned: Iterator[Kind], calls: int) -> None:
        async def one_after_another() -> None:
            for kind in planned:
                await self._exchange(connection, kind)

        async with connection, asyncio.TaskGroup() as group:
            for _ in range(calls):
                group.create_task(one_after_another())

    async def _exchange(self, connection: Connection | GrpcConnection, kind: Kind) -> None:
        damaged = kind.of_files and self._source.random() < _DAMAGED_SHARE
        numbers = [
            self._source.randrange(_IMAGES) for _ in range(1 if damaged else self._source.randint(1, _MOST_IMAGES))
        ]
        images = [_image(number) for number in numbers]
        request = kind.request([images[0][:_DAMAGED_BYTES]] if damaged else images)
        try:
            answer = await connection.answer_to(request)
        except (OSError, EOFError) as error:
            await connection.close()
            self.faults[f"{kind.route} {type(error).__name__}"] += 1
            return
        self.ends[kind.contract, kind.method, kind.route, answer.status] += 1
        if not self._is_right(kind, answer, numbers, damaged=damaged):
            self.faults[f"{kind.route} {answer.status}"] += 1
        outcome = {_OK: "ok", _TOO_MANY: "refused"}.get(answer.status, "bad_image")
        self.images[outcome] += request.images

    def _is_right(self, kind: Kind, answer: Answer, numbers: Sequence[int], *, damaged: bool) -> bool:
        if answer.status == _TOO_MANY:
            return self._overload and _refused_in_form(kind, answer)
        if damaged:
            return answer.status == (_BAD_FILE if kind.contract == "native" else _BAD)
        return answer.status == _OK and self._native.agree(kind, answer, numbers)


def measure(scale: Scale) -> Iterator[Finding]:
    """Run in one process and with HTTP workers."""
    for workers in WORKERS:
        requests = scale.count(_REQUESTS, least=200)
        load, closest, server, _ = _run(requests, overload=False, GRADLESS_HTTP_WORKERS=workers)
        connections = f"{_HTTP_CONNECTIONS + _GRPC_CONNECTIONS} connections, {_GRPC_CONNECTIONS} of them gRPC"
        scenario = Scenario(
            "protocols",
            f"GRADLESS_HTTP_WORKERS={workers}: {requests:,} requests in {len(KINDS)} forms over {connections}",
        )
        yield scenario.finding(
            f"each answer is the native one to its own images, within {TOLERANCE:g}",
            f"{_by_status(load)}; wrong: {format_counts(load.faults)}; two images differ by {closest:g}",
            met=not load.faults and closest > 2 * TOLERANCE,
        )
        yield _counted_once(scenario, load, server)


def measure_overload(scale: Scale) -> Iterator[Finding]:
    """Give the model less room than one client takes."""
    requests = scale.count(_REQUESTS_OF_OVERLOAD, least=600)
    load, _, server, (well, afterwards) = _run(requests, overload=True, **_OVERLOADED)
    scenario = Scenario(
        "protocols-overload", f"{requests:,} requests or more in {len(KINDS)} forms, room for {_CAPACITY} images"
    )
    lacking = load.lacking()
    yield scenario.finding(
        "each route refuses in its protocol's form, with the time to come again; all other answers are right",
        f"{_by_status(load)}; wrong: {format_counts(load.faults)}; without: {', '.join(lacking) or 'none'}",
        met=not load.faults and not lacking,
    )
    yield _counted_once(scenario, load, server)
    yield scenario.finding("ready and answering afterwards", afterwards, met=well)


def _run(requests: int, *, overload: bool, **settings: str) -> tuple[_Load, float, Counted, tuple[bool, str]]:
    async def run(served: Served) -> tuple[_Load, float, Counted, tuple[bool, str]]:
        native = await native_answers(served.address, [_image(number) for number in range(_IMAGES)])
        load = _Load(native, requests, overload=overload)
        before = await counted_at_rest(served.address, frozenset(), 0)
        await load.run(served)
        routes = frozenset(kind.route for kind in KINDS)
        sent = load.ends.total() + sum(count for (route, _), count in before.requests.items() if route in routes)
        after = await counted_at_rest(served.address, routes, sent)
        by_protocol = after.by_protocol - before.by_protocol
        return (
            load,
            native.closest,
            after._replace(by_protocol=by_protocol, images=after.images - before.images),
            (await well_afterwards(served.address)),
        )

    more = {"GRADLESS_GRPC_PORT": "0", "GRADLESS_METRICS_MAX_AGE_S": "0", **settings}
    with serving(NULL_MODEL, **more) as served:
        return asyncio.run(run(served))


def _image(number: int) -> bytes:
    return known_image(1 + number * _STEP)


def _counted_once(scenario: Scenario, load: _Load, server: Counted) -> Finding:
    routes = {kind.route for kind in KINDS}
    counted = Counter({key: count for key, count in server.by_protocol.items() if key[2] in routes and key[1] != "GET"})
    differ = {key: (counted[key], load.ends[key]) for key in counted | load.ends if counted[key] != load.ends[key]}
    return scenario.finding(
        "each request is counted once with its protocol, route and status, each image with its outcome",
        f"{counted.total():,} of {load.ends.total():,} requests; others: {differ or 'none'}; "
        f"images {format_counts(server.images)}, by clients {format_counts(load.images)}",
        met=not differ and server.images == load.images,
    )


def _by_status(load: _Load) -> str:
    return format_counts(sum((Counter({str(key[3]): count}) for key, count in load.ends.items()), Counter()))


def _refused_in_form(kind: Kind, answer: Answer) -> bool:
    """Return whether a 429 has the form of its protocol and says when to come again."""
    again = field(answer.head, PUSHBACK if kind.over_grpc else b"retry-after") or b""
    if not again.isdigit() or not int(again):
        return False
    if kind.over_grpc:
        return bool(answer.body)
    media_type = b"application/problem+json" if kind.contract == "native" else b"application/json"
    form = _REFUSALS.get(kind.contract, _TEXT)
    return field(answer.head, b"content-type") == media_type and _matches(from_json(answer.body), form)


def _matches(value: Any, form: Any) -> bool:
    if isinstance(form, dict):
        return (
            isinstance(value, dict) and value.keys() == form.keys() and all(_matches(value[k], form[k]) for k in form)
        )
    return bool(value) and isinstance(value, form) if isinstance(form, type) else value == form
