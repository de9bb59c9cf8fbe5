"""At capacity the connection refuses requests at their headers; requests that need full handling are passed on."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from app.server.connection import BoundedConnection
from models.interface.errors import DecodersBusyError, OverloadedError

pytestmark = pytest.mark.anyio

FULL = {"overload": OverloadedError(8, 2.5)}
KEY = "a-key-of-sixteen-letters-or-more"

_PATIENCE_S = 60


class Listening:
    """An application behind connections with load shedding, on a local port."""

    def __init__(self, app: FastAPI, address: tuple[str, int]) -> None:
        self.runtime: Any = app.state.parts.runtime
        self.address = address
        self.client = httpx2.AsyncClient(base_url=f"http://{address[0]}:{address[1]}")

    async def sent(self, *pieces: bytes, answers: int = 1) -> list[tuple[dict[bytes, bytes], bytes]]:
        """Return head and body of `answers` responses on one connection. Each piece follows the previous response."""
        found = []
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(*self.address)
            for number in range(max(answers, len(pieces))):
                if number < len(pieces):
                    writer.write(pieces[number])
                if number < answers:
                    found.append(await _answer(reader))
            writer.close()
        return found

    async def ends_after(self, piece: bytes) -> bool:
        """Return True if the connection ends with the response to `piece`."""
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(*self.address)
            writer.write(piece)
            head, _ = await _answer(reader)
            ends = not await reader.read() if head.get(b"connection") == b"close" else False
            writer.close()
        return ends


async def _answer(reader: asyncio.StreamReader) -> tuple[dict[bytes, bytes], bytes]:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).strip().split(b"\r\n")
    head = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
    return head | {b"status": status.split()[1]}, await reader.readexactly(int(head[b"content-length"]))


Listen = Callable[..., AbstractAsyncContextManager[Listening]]


@pytest.fixture
def listen(application: Callable[..., FastAPI]) -> Listen:
    """Start an application, with the arguments of `application`."""

    @asynccontextmanager
    async def start(runtime: dict[str, Any], **settings: Any) -> AsyncIterator[Listening]:
        app = application(runtime, **settings)
        config = uvicorn.Config(app, log_config=None, lifespan="off", access_log=False)
        config.load()
        protocol = BoundedConnection.with_bounds(_PATIENCE_S, lambda _row, _seconds: None, app.state.shedding)
        state = ServerState()
        # A running server updates it each second.
        state.default_headers = [(b"date", b"today")]
        async with app.router.lifespan_context(app):
            loop = asyncio.get_running_loop()
            server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
            async with server:
                listening = Listening(app, server.sockets[0].getsockname())
                async with listening.client:
                    yield listening
                for connection in state.connections:
                    connection.transport.abort()
                await asyncio.sleep(0)
            await asyncio.gather(*state.tasks)

    return start


def head_of(*headers: str, path: str = "/v1/classify") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: localhost", *headers, "", ""]).encode()


async def test_a_refusal_does_not_wait_for_the_body(listen: Listen) -> None:
    async with listen(FULL) as listening:
        [(head, body)] = await listening.sent(head_of("content-length: 5"))
    assert head[b"status"] == b"429"
    assert b"urn:gradless:problem:overloaded" in body
    assert head[b"content-type"] == b"application/problem+json"
    assert head[b"retry-after"] == b"3"
    assert head[b"date"] == b"today"
    assert head[b"x-content-type-options"] == b"nosniff"
    assert head[b"server-timing"].startswith(b"total;dur=")
    assert len(head[b"x-request-id"]) == 16
    assert head[b"x-request-id"] in body


async def test_a_refusal_is_the_problem_of_its_error(listen: Listen) -> None:
    async with listen({"overload": DecodersBusyError(7.0)}) as listening:
        answer = await listening.client.post("/v1/classify", content=b"image")
    assert answer.json()["type"] == "urn:gradless:problem:decoders-busy"


async def test_a_refusal_has_the_request_id_of_the_client(listen: Listen) -> None:
    async with listen(FULL) as listening:
        answer = await listening.client.post("/v1/classify", content=b"image", headers={"X-Request-ID": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json()["request_id"] == "mine"


@pytest.mark.parametrize(
    ("headers", "ends"),
    [
        (["content-length: 99999"], False),
        (["content-length: 100000"], True),
        (["transfer-encoding: chunked"], True),
        (["content-length: 5", "connection: close"], True),
        # With Expect: 100-continue the client may or may not send its body after the refusal.
        (["content-length: 5", "expect: 100-continue"], True),
    ],
    ids=["short", "long", "chunked", "connection: close", "expect: 100-continue"],
)
async def test_a_connection_stays_open_unless_much_of_a_body_is_unread(
    listen: Listen, headers: Sequence[str], *, ends: bool
) -> None:
    async with listen(FULL) as listening:
        assert await listening.ends_after(head_of(*headers)) == ends


async def test_a_client_that_writes_its_whole_body_first_reads_the_refusal(listen: Listen) -> None:
    def refused(address: tuple[str, int]) -> int:
        connection = http.client.HTTPConnection(*address, timeout=_PATIENCE_S)
        connection.request("POST", "/v1/classify", bytes(8 * 2**20))
        status = connection.getresponse().status
        connection.close()
        return status

    async with listen(FULL) as listening:
        statuses = [await asyncio.to_thread(refused, listening.address) for _ in range(20)]
    assert statuses == [429] * 20


async def test_at_capacity_malformed_heads_are_still_refused(listen: Listen) -> None:
    heads = {
        b"431": head_of("content-length: 5", "x-long: " + "x" * 33_000),
        b"400": head_of("content-length: 5", "host: elsewhere"),
        b"429": head_of("content-length: 5"),
    }
    async with listen(FULL) as listening:
        for status, head in heads.items():
            [(answer, _)] = await listening.sent(head + b"image")
            assert answer[b"status"] == status


async def test_requests_after_a_refusal_that_closes_the_connection_do_not_start(listen: Listen) -> None:
    async with listen(FULL) as listening:
        # This runtime would answer the second request.
        assert await listening.ends_after(
            head_of("content-length: 5", "connection: close") + b"image" + head_of("if-match: *", "content-length: 0")
        )
        exposition = (await listening.client.get("/metrics")).text
    assert 'gradless_requests_total{code="429",contract="native",method="POST",route="/v1/classify"} 1.0' in exposition
    assert 'gradless_requests_total{code="200",contract="native",method="POST",route="/v1/classify"} 0.0' in exposition


async def test_requests_after_a_refused_one_are_answered_on_the_same_connection(listen: Listen) -> None:
    pieces = [
        head_of("content-length: 70000") + b"i" * 40_000,
        b"i" * 30_000 + head_of("content-length: 5"),
        b"image" + b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ]
    async with listen(FULL) as listening:
        answers = await listening.sent(*pieces, answers=3)
    assert [head[b"status"] for head, _ in answers] == [b"429", b"429", b"200"]


async def test_refusals_are_sent_after_the_responses_to_earlier_requests(listen: Listen) -> None:
    pieces = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" + head_of("content-length: 5") + b"image"
    async with listen(FULL) as listening:
        # The second request is passed on, and this runtime answers it.
        answers = await listening.sent(pieces, answers=2)
    assert [head[b"status"] for head, _ in answers] == [b"200", b"200"]


async def test_the_chunks_of_a_refused_request_do_not_count_for_the_next(listen: Listen) -> None:
    async with listen(FULL) as listening:
        assert await listening.ends_after(head_of("transfer-encoding: chunked") + b"5\r\nimage\r\n0\r\n\r\n")
        assert await listening.ends_after(head_of("transfer-encoding: chunked") + b"no length\r\n")
        assert (await listening.client.get("/healthz")).status_code == 200


async def test_requests_with_repeated_headers_are_passed_to_the_application(listen: Listen) -> None:
    image = ("content-length: 5", "content-type: image/jpeg")
    async with listen(FULL) as listening:
        # This runtime answers every request that reaches the application.
        answers = [
            await listening.sent(head_of(*image, *more) + b"image")
            for more in ([], ["content-type: multipart/form-data"], ["x-request-id: one", "x-request-id: two"])
        ]
    assert [head[b"status"] for [(head, _)] in answers] == [b"429", b"200", b"200"]


async def test_bodies_with_an_unknown_number_of_images_are_passed_to_the_application(
    listen: Listen, multipart: Callable[..., tuple[dict[str, str], bytes]]
) -> None:
    headers, body = multipart(b"one", b"two")
    shouted = {"Content-Type": headers["Content-Type"].replace("multipart/form-data", "Multipart/Form-Data")}
    async with listen(FULL) as listening:
        post = listening.client.post
        statuses = [
            (await post("/v1/classify", json={"images": ["aW1hZ2U="]})).status_code,
            (await post("/v1/classify", content=body, headers=headers)).status_code,
            (await post("/v1/classify", content=body, headers=shouted)).status_code,
            (await post("/v1/classify", content=b"image")).status_code,
        ]
    assert statuses == [200, 200, 200, 429]


async def test_a_refusal_without_a_log_line_has_no_exemplar(listen: Listen) -> None:
    async with listen(FULL) as listening:
        await listening.client.post("/v1/features", content=b"image", headers={"X-Request-ID": "mine"})
        accepted = {"Accept": "application/openmetrics-text"}
        exposition = (await listening.client.get("/metrics", headers=accepted)).text
    assert (
        'gradless_request_duration_seconds_count{code="4xx",contract="native",method="POST",route="/v1/features"} 1.0'
        in exposition
    )
    assert "mine" not in exposition


async def test_refusals_are_counted_singly_and_logged_together(
    listen: Listen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.observability.request_log._SHED_LINE_S", 3600)
    caplog.set_level("INFO", "gradless.requests")
    async with listen(FULL) as listening:
        for _ in range(3):
            await listening.client.post("/v1/features", content=b"image")
        exposition = (await listening.client.get("/metrics")).text
        assert not caplog.records
    # The refusals that no line has counted yet are logged at the end.
    [line] = [record for record in caplog.records if record.name == "gradless.requests"]
    logged = {name: vars(line)[name] for name in ("status", "problem", "model", "requests")}
    assert logged == {"status": 429, "problem": "overloaded", "model": "fake", "requests": 3}
    assert 'gradless_rejected_total{reason="queue_full"} 3.0' in exposition
    assert 'gradless_requests_total{code="429",contract="native",method="POST",route="/v1/features"} 3.0' in exposition
    assert (
        'gradless_request_duration_seconds_count{code="4xx",contract="native",method="POST",route="/v1/features"} 3.0'
        in exposition
    )


async def test_at_level_debug_each_refusal_has_a_log_line(listen: Listen, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "gradless.requests")
    async with listen(FULL) as listening:
        answer = await listening.client.post("/v1/features", content=b"image")
    [line] = [vars(record) for record in caplog.records if record.name == "gradless.requests"]
    assert (line["status"], line["problem"], line["model"], line["task"]) == (429, "overloaded", "fake", "features")
    assert (line["path"], line["request_id"]) == ("/v1/features", answer.headers["x-request-id"])


@pytest.mark.parametrize("query", ["?model=fake", "?top_k=2&model=fake", "?top_k=2", "?top_k=0"])
async def test_other_parameters_do_not_prevent_a_refusal(listen: Listen, query: str) -> None:
    async with listen(FULL) as listening:
        [(head, _)] = await listening.sent(head_of("content-length: 5", path=f"/v1/classify{query}"))
    assert head[b"status"] == b"429"


async def test_a_model_below_capacity_answers_while_another_is_at_capacity(listen: Listen) -> None:
    async with listen({"names": ("full", "free"), **FULL}) as listening:
        listening.runtime.names_overloaded = {"full"}
        statuses = [
            (await listening.client.post("/v1/classify", params=params, content=b"image")).status_code
            for params in ({}, {"model": "full"}, {"model": "free"})
        ]
        encoded = await listening.client.post("/v1/classify?%6Dodel=free", content=b"image")
    assert statuses == [429, 429, 200]
    assert encoded.status_code == 200


@pytest.mark.parametrize("query", ["?model=full&model=free", "?top_k=1&top_k=2", "?topk=1", "?encoding=list"])
async def test_an_invalid_query_is_refused_for_its_own_error(listen: Listen, query: str) -> None:
    async with listen({"names": ("full", "free"), **FULL}) as listening:
        answer = await listening.client.post(f"/v1/classify{query}", content=b"image")
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:gradless:problem:invalid-parameter")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/classify", {}, 401),
        ("/v1/classify", {"X-API-Key": "an-unknown-key-of-length"}, 401),
        ("/v1/classify", {"X-API-Key": KEY, "If-Match": "another"}, 412),
        ("/v1/classify", {"X-API-Key": KEY, "Host": "elsewhere.example"}, 421),
        ("/v1/classify?model=another", {"X-API-Key": KEY}, 404),
        ("/v1/classify", {"X-API-Key": KEY}, 429),
        ("/v1/nothing", {"X-API-Key": KEY}, 404),
    ],
)
async def test_a_request_with_another_error_gets_that_error(
    listen: Listen, path: str, headers: dict[str, str], status: int
) -> None:
    async with listen(FULL, api_keys=KEY, allowed_hosts=("127.0.0.1",)) as listening:
        assert (await listening.client.post(path, content=b"image", headers=headers)).status_code == status


async def test_a_full_model_without_classes_answers_that_it_has_none(listen: Listen) -> None:
    async with listen({"classes": 0, **FULL}) as listening:
        classified, extracted = [
            await listening.client.post(f"/v1/{task}", content=b"image") for task in ("classify", "features")
        ]
    assert (classified.status_code, classified.json()["type"]) == (422, "urn:gradless:problem:no-classes")
    assert extracted.status_code == 429


async def test_cross_origin_requests_are_passed_to_the_application_for_its_cors_headers(listen: Listen) -> None:
    async with listen(FULL, cors_origins=("https://page.example",)) as listening:
        answer = await listening.client.post(
            "/v1/classify", content=b"image", headers={"Origin": "https://page.example"}
        )
        # This runtime answers it, so that the status shows who answered.
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert (await listening.client.post("/v1/classify", content=b"image")).status_code == 429


async def test_a_refusal_has_a_trace(listen: Listen) -> None:
    class Trace:
        trace_id = "0" * 32
        response_header = "00-a-trace"

        def __init__(self) -> None:
            self.ended: list[tuple[str | None, int]] = []

        def end(self, _request: object, route: str | None, status: int) -> None:
            self.ended.append((route, status))

    class Traces:
        def __init__(self) -> None:
            self.trace = Trace()

        def begin(self, _scope: object) -> Trace:
            return self.trace

        def close(self) -> None: ...

    traces = Traces()
    async with listen(FULL, traces=traces) as listening:
        answer = await listening.client.post("/v1/classify", content=b"image")
    assert answer.headers["traceresponse"] == "00-a-trace"
    assert traces.trace.ended == [("/v1/classify", 429)]


async def test_a_draining_service_answers_with_draining(listen: Listen) -> None:
    async with listen({**FULL, "ready": False}) as listening:
        assert (await listening.client.post("/v1/classify", content=b"image")).status_code == 503
