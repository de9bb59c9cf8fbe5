"""Requests of all protocols with changed headers, JSON, tensors and messages; some claim to be enormous."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

from app.http.contract import TENSORS_AT
from reliability.counted import documented_statuses
from reliability.enormous import enormous
from reliability.finding import Finding, Scenario
from reliability.grpc_wire import GrpcConnection
from reliability.known import exchange, format_counts, known_image, well_afterwards
from reliability.mutations import SEED, mutated, mutated_images
from reliability.protocols import INFER, KINDS, Kind
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, WORKERS, Served, serving
from reliability.wire import Address, Answer, Connection, Request

_REQUESTS = 20_000
_CLIENTS = 8
# The heap keeps what a rare large image took: some 20 MB within 10,000 requests, and 3 MB in the next 35,000.
_GROWTH_BAR_MB = 60.0
_WARMING_SHARE = 0.25
_AT_ONCE_S = 1.0
# The body, its strings, the files in them, and the heap around them.
_HELD_BAR_MB = 250.0
_FAULT_OF_CLIENT = 4
# Statuses of a fault of the client that other protocols than the native one have, docs/clients.md.
_DOCUMENTED = frozenset({200, 400, 404, 408, 412, 413, 415, 501})
# Not of a fault of the client, although the OpenAPI document has them.
_BUSY, _OF_SERVER = 429, 500
# Shares of requests with a changed image, compressed, and changed in one field and beyond it.
_IMAGES_SHARE, _COMPRESSED_SHARE, _FIELD_SHARE, _BEYOND_SHARE = 0.2, 0.05, 0.7, 0.3

_END_OF_HEAD = b"\r\n\r\n"
_HEADERS: Sequence[tuple[str, Sequence[str]]] = (
    (TENSORS_AT, ("0", "1", "-1", "65", "100", "70000", str(2**64), "9" * 5000, "0x10", "", "1e3", "²")),
    ("Content-Type", ("", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "image/png;;=")),
    ("Content-Type", ("application/vnd.sagemaker-triton.binary+json;json-header-size=9", "text/plain; charset=utf-16")),
    ("Content-Encoding", ("gzip", "deflate", "br", "gzip, gzip", "identity", "", "x" * 500)),
    ("Accept-Encoding", ("gzip", "deflate", "br;q=1, *;q=0")),
    ("Accept", ("application/x-npy", "application/x-npz", "*")),
    ("If-Match", ("*", '"nobody"', "", "\\")),
    ("Authorization", ("", "Bearer", "Basic !")),
    ("X-Request-ID", ("", "a" * 500, "é")),
    ("Content-Length", ("", "-1", "1e3", "0x10", "9" * 30, "7, 7")),
    ("Transfer-Encoding", ("chunked", "gzip", "identity", "")),
)
# A path that is not UTF-8 would close the port for the other calls as well (docs/security.md).
_METADATA = (("if-match", "*"), ("if-match", '"nobody"'), ("authorization", "Basic !"), ("x-request-id", "a" * 500))
_NESTED: Any = json.loads("[" * 500 + "]" * 500)
_VALUES: Sequence[Any] = (
    *(None, True, -1, 0, 1, 3, 2**31, 2**32, 2**63, 2**64, 10**400, 1e308, 0.5, "", "\0", "é" * 300, "x" * 100_000),
    *("BYTES", "UINT8", "INT64", "FP16", "BF16", "FP64", "BOOL", "probabilities", "features", "null@tensor", "nobody"),
    *("data:image/png;base64,", "http://127.0.0.1/", "====", [], {}, _NESTED, [0], [1] * 9, [2**31], [2**32, 2**32]),
    *([1, 3, 224, 224], [3, 224, 224], [-1, 1], [65, 1], [[1.5, "x"]], [0] * 10_000, {"b64": 1}, {"image_url": {}}),
    *({"shared_memory_region": "r"}, {"classification": 2**40}, {"binary_data_size": 7}, {"binary_data": True}),
    *({"string_param": "3"}, {"int64_param": -1}, {"bytes_contents": [b"x"]}, {"fp32_contents": [1.0]}, b"\xff" * 9),
)


class _Fuzz:
    """Clients that send changed requests, and the statuses that they got."""

    def __init__(self, served: Served, requests: int) -> None:
        self._served = served
        self.grpc_address = served.grpc_address()
        self._left = requests
        self._source = random.Random(SEED)  # noqa: S311 - a load, no secret
        self._images = mutated_images(SEED, 2 * requests)
        self._bodies = [kind.request([known_image(number)]).wire for number, kind in enumerate(KINDS)]
        self.ends: Counter[str] = Counter()
        self.undocumented: Counter[str] = Counter()

    async def run(self, requests: int) -> None:
        """Send that many requests more."""
        until = self._left - requests
        documented = await documented_statuses(self._served.address)
        async with asyncio.TaskGroup() as group:
            for over_grpc in [False] * _CLIENTS + [True]:
                group.create_task(self._client(until, documented, over_grpc=over_grpc))

    async def _client(self, until: int, documented: dict[str, frozenset[int]], *, over_grpc: bool) -> None:
        kinds = [kind for kind in KINDS if kind.over_grpc == over_grpc]
        connection: Connection | GrpcConnection = Connection(self._served.address)
        if over_grpc:
            connection = GrpcConnection(self.grpc_address)
        async with connection:
            while self._left > until:
                self._left -= 1
                kind = self._source.choice(kinds)
                end, _ = await exchange(connection, self._changed(kind))
                self.ends[end] += 1
                allowed = _DOCUMENTED
                if kind.contract == "native":
                    allowed = frozenset(each for each in documented[kind.route] if each < _OF_SERVER) - {_BUSY}
                if not end.isdecimal() or int(end) not in allowed:
                    self.undocumented[f"{kind.route} {end}"] += 1

    def _changed(self, kind: Kind) -> Request:
        source = self._source
        image = (
            next(self._images)
            if kind.of_files and source.random() < _IMAGES_SHARE
            else known_image(source.randrange(9))
        )
        request = kind.request([image] * source.choice((1, 1, 2)))
        return _changed_message(request, source) if kind.over_grpc else _changed_http(request, source, self._bodies)


def _changed_http(request: Request, source: random.Random, bodies: Sequence[bytes]) -> Request:
    """Change the JSON, the bytes or the headers of a request, or several of them."""
    head, _, body = request.wire.partition(_END_OF_HEAD)
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    changes = source.choice(("json", "json", "json", "bytes", "headers", "json bytes headers"))
    if "json" in changes and body.startswith(b"{"):
        text = body.decode("latin-1")
        value, end = json.JSONDecoder().raw_decode(text)
        _change_one(value, source)
        changed = json.dumps(value, default=str).encode()
        lines = [
            f"{TENSORS_AT}: {len(changed)}".encode() if line.startswith(TENSORS_AT.encode()) else line for line in lines
        ]
        body = changed + body[end:]
    if "bytes" in changes:
        body = mutated(body, source, bodies)
    if source.random() < _COMPRESSED_SHARE:
        body = zlib.compress(body)[: source.randrange(9, 9999)]
        lines.append(b"Content-Encoding: deflate")
    if "headers" in changes:
        name, values = source.choice(_HEADERS)
        lines = [line for line in lines if not line.lower().startswith(name.lower().encode())]
        lines.append(f"{name}: {source.choice(values)}".encode())
    # Without its length, what follows on the connection would be another request, or none.
    framed = not lines[-1].startswith((b"Content-Length", b"Transfer-Encoding"))
    lines.append(b"Content-Length: %d" % len(body) if framed else b"Connection: close")
    return request._replace(wire=b"\r\n".join(lines) + _END_OF_HEAD + body)


def _changed_message(request: Request, source: random.Random) -> Request:
    """Change a field of a message, its bytes, its metadata, or several of them."""
    message = INFER.request.FromString(request.wire)
    tensor = message.inputs[0]
    fields: dict[str, Any] = {
        "model_name": message.model_name,
        "id": "7",
        "inputs": [{"name": "x", "datatype": tensor.datatype, "shape": list(tensor.shape), "contents": {}}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": {"int64_param": 3}}}],
        "raw_input_contents": list(message.raw_input_contents),
    }
    wire = request.wire
    if source.random() < _FIELD_SHARE:
        _change_one(fields, source)
        # Most values are of another type than the field that they are given to.
        with contextlib.suppress(TypeError, ValueError, AttributeError, OverflowError):
            wire = INFER.request(**fields).SerializeToString()
    if wire is request.wire or source.random() < _BEYOND_SHARE:
        wire = mutated(wire, source, [request.wire])
    if source.random() < _COMPRESSED_SHARE:
        wire = zlib.compress(wire, wbits=source.choice((15, 31)))[: source.randrange(9, 9999)]
    return request._replace(wire=wire, metadata=source.choice([(), (), source.choices(_METADATA)]))


def _change_one(value: Any, source: random.Random) -> None:
    """Replace, take out or repeat one value at any depth."""
    places: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        each = pending.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        places += [(each, key) for key in keys]
        pending += [each[key] for key in keys]
    container, key = source.choice(places)
    match source.randrange(6):
        case 0:
            del container[key]
        case 1:
            container[key] = [container[key]] * source.choice((1, 2, 65))
        case _:
            container[key] = source.choice(_VALUES)


async def _refused_at_once(address: Address, grpc_address: Address) -> tuple[int, tuple[float, str], list[str]]:
    """Send the enormous requests one by one. Return their number, the slowest, and those not refused in time."""
    took, missed = [], []
    async with GrpcConnection(grpc_address) as connection:
        for name, request in enormous():
            sent_at = perf_counter()
            over_grpc = request.route == INFER.path
            answer = await (connection.answer_to(request) if over_grpc else _read_while_sending(address, request))
            seconds = perf_counter() - sent_at
            took.append((seconds, f"{name}: {answer.status}"))
            if answer.status // 100 != _FAULT_OF_CLIENT or seconds > _AT_ONCE_S:
                missed.append(f"{name}: {answer.status} after {seconds:.2f} s")
    return len(took), max(took), missed


async def _read_while_sending(address: Address, request: Request) -> Answer:
    """Return an answer that may come before the server has read all."""
    async with Connection(address) as connection:
        await connection.send(b"")
        sending = asyncio.create_task(connection.send(request.wire))
        try:
            return await connection.receive()
        finally:
            sending.cancel()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await sending


def measure(scale: Scale) -> Iterator[Finding]:
    """Run in one process, then with HTTP workers, each with half of the requests."""
    requests = scale.count(_REQUESTS, least=800) // 2
    for workers in WORKERS:
        with serving(NULL_MODEL, GRADLESS_GRPC_PORT="0", GRADLESS_HTTP_WORKERS=workers) as served:
            yield from asyncio.run(_fuzzed(served, requests, f"GRADLESS_HTTP_WORKERS={workers}"))


async def _fuzzed(served: Served, requests: int, settings: str) -> list[Finding]:
    fuzz = _Fuzz(served, requests)
    scenario = Scenario("protocol-fuzz", f"{settings}: {requests:,} changed requests of all protocols, seed {SEED}")
    warming = round(requests * _WARMING_SHARE)
    await fuzz.run(warming)
    before = served.rss_mb()
    await fuzz.run(requests - warming)
    after = served.rss_mb()
    peaks = served.peak_mb()
    number, (slowest_s, slowest), missed = await _refused_at_once(served.address, fuzz.grpc_address)
    held_mb = max(peak - peaks.get(process, 0.0) for process, peak in served.peak_mb().items())
    survived = served.rss_mb().keys() >= before.keys()
    well, afterwards = await well_afterwards(served.address)
    growth = sum(after.values()) - sum(before.values())
    return [
        scenario.finding(
            "each is answered with 2xx or a documented status of a fault of the client",
            f"{format_counts(fuzz.ends)}; undocumented: {format_counts(fuzz.undocumented)}",
            met=not fuzz.undocumented,
        ),
        scenario.finding(
            f"memory of all processes grows by ≤ {_GROWTH_BAR_MB:g} MB after the first quarter",
            f"{growth:+.1f} MB",
            met=growth <= _GROWTH_BAR_MB,
        ),
        scenario.finding(
            f"what states, holds or expands to too much (60 MB of JSON) is refused with 4xx within {_AT_ONCE_S:g} s",
            f"{number} requests, the slowest {slowest} after {slowest_s:.2f} s; not so: {'; '.join(missed) or 'none'}",
            met=not missed,
        ),
        scenario.finding(
            f"no process holds > {_HELD_BAR_MB:g} MB more meanwhile", f"{held_mb:+.1f} MB", met=held_mb <= _HELD_BAR_MB
        ),
        scenario.finding(
            "the same processes survive, ready and answering",
            f"{len(before)} processes; {afterwards}",
            met=well and survived,
        ),
    ]
