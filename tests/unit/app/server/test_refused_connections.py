"""Data that never becomes a request is refused and reported once; a request reports itself."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.http.problems import Row
from app.observability.metrics import Metrics
from app.server.connection import BoundedConnection

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
BEGUN = b"POST / HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"


async def read_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    await PlainTextResponse("here")(scope, receive, send)


async def refusals(*pieces: bytes, answers: int = 0) -> list[tuple[int, float | None]]:
    """Send `pieces` on one connection; wait for a response after each of the first `answers`.

    Return the status and the seconds of each refusal.
    """
    reported: list[tuple[int, float | None]] = []

    def note(row: Row, seconds: float | None) -> None:
        reported.append((row.status, seconds))

    config = uvicorn.Config(read_and_answer, log_config=None, lifespan="off")
    config.load()
    protocol = BoundedConnection.with_bounds(0.2, note)
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for number, piece in enumerate(pieces):
            writer.write(piece)
            if number < answers:
                await reader.readuntil(b"\r\n\r\nhere")
        await reader.read()
        writer.close()
        await asyncio.gather(*state.tasks, return_exceptions=True)
    return reported


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ((b"\x16\x03\x01 is how TLS begins\r\n\r\n",), 400),
        # Malformed and too large in one read: it is refused for one of the two reasons.
        ((b"\x16\x03\x01" * 20_000,), 400),
        ((b"GET / HTTP/1.1\r\nx-long: " + b"x" * 40_000,), 431),
        ((b"GET / HTTP/1.1\r\nhost: h",), 408),
        ((REQUEST + b"nonsense\r\n\r\n",), 400),
    ],
    ids=["not HTTP", "much that is not HTTP", "too large head", "unfinished head", "after a request"],
)
async def test_data_that_never_becomes_a_request_is_refused_once_with_its_duration(
    pieces: tuple[bytes, ...], status: int
) -> None:
    began_at = perf_counter()
    [(refused_with, seconds)] = await refusals(*pieces)
    assert refused_with == status
    assert seconds is not None
    assert 0 <= seconds <= perf_counter() - began_at
    assert (seconds >= 0.19) == (status == 408)


async def test_the_duration_of_a_later_head_does_not_include_earlier_requests() -> None:
    began_at = perf_counter()
    [(status, seconds)] = await refusals(REQUEST, REQUEST, b"nonsense\r\n\r\n", answers=2)
    assert status == 400
    assert seconds is not None
    assert seconds < (perf_counter() - began_at) / 2


async def test_a_request_with_a_malformed_body_reports_itself() -> None:
    assert await refusals(BEGUN + b"no length\r\n") == [(400, None)]


def test_refusals_without_a_request_are_counted_as_requests_without_route_and_method() -> None:
    metrics = Metrics()
    row = Row(431, "headers-too-large", "too large", "too_large")
    metrics.refused_by_connection(row, 0.25)
    metrics.refused_by_connection(row, None)

    families = text_string_to_metric_families(metrics.exposition("")[0].decode())
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.value and not sample.name.endswith("_bucket") and sample.name.startswith("gradless_re")
    }
    assert found == {
        ("gradless_requests_total", "431", "other", "other"): 1,
        ("gradless_request_duration_seconds_count", "4xx", "other", "other"): 1,
        ("gradless_request_duration_seconds_sum", "4xx", "other", "other"): 0.25,
        ("gradless_rejected_total", "too_large"): 2,
    }
