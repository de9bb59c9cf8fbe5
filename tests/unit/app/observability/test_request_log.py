"""One line of log for each request: what an operator asks it, and nothing that is a caller's secret."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest

from models.interface.errors import DrainingError, UndecodableImageError
from models.interface.results import Answer

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

# Of every record, as logging makes them.
_USUAL = set(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """What the lines of requests have said so far, their level included."""
    caplog.set_level(logging.DEBUG, "gradless.requests")

    def read() -> list[dict[str, Any]]:
        records = [record for record in caplog.records if record.name == "gradless.requests"]
        return [
            {"level": record.levelname} | {name: value for name, value in vars(record).items() if name not in _USUAL}
            for record in records
        ]

    return read


Lines = Callable[[], list[dict[str, Any]]]


async def test_the_line_of_an_answer_tells_what_was_asked_and_where_the_time_went(serve: Serve, lines: Lines) -> None:
    async with serve() as client:
        answer = await client.post("/v1/classify?top_k=1", content=b"image")

    (line,) = lines()
    assert line.pop("read_ms") >= 0
    assert 0 < line.pop("respond_ms") < line.pop("total_ms")
    assert line == {
        "level": "INFO",
        "request_id": answer.headers["x-request-id"],
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/classify",
        "status": 200,
        "model": "fake",
        "task": "classify",
        "images": 1,
        "batch_size": 1,
        "body_bytes": 5,
        "decode_ms": 1.0,
        "queue_ms": 2.0,
        "forward_ms": 3.0,
    }


async def test_a_request_of_several_images_is_one_line_and_told_by_its_slowest(
    serve: Serve, lines: Lines, multipart: Callable[..., Any]
) -> None:
    headers, body = multipart(b"first", b"second")
    async with serve() as client:
        await client.post("/v1/features", content=body, headers=headers)

    (line,) = lines()
    assert (line["task"], line["images"], line["batch_size"]) == ("features", 2, 1)


@pytest.mark.parametrize(
    ("error", "status", "problem", "level"),
    [
        (UndecodableImageError("PNG", "cut short"), 422, "undecodable-image", "INFO"),
        (DrainingError(), 503, "draining", "WARNING"),
        (RuntimeError("unforeseen"), 500, "internal-error", "ERROR"),
    ],
)
async def test_the_line_of_a_refusal_names_its_problem_and_is_as_loud_as_it_is_ours(
    serve: Serve, lines: Lines, error: Exception, status: int, problem: str, level: str
) -> None:
    async def fail(*_arguments: object, **_options: object) -> Answer:
        raise error

    async with serve({"predict": fail}) as client:
        await client.post("/v1/classify", content=b"image")

    (line,) = lines()
    assert (line["status"], line["problem"], line["level"]) == (status, problem, level)


async def test_a_caller_who_has_gone_has_a_line_too(
    application: Callable[..., Any], exchange: Callable[..., Any], lines: Lines
) -> None:
    app = application()
    messages = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    async with app.router.lifespan_context(app):
        await exchange(app, receive)

    (line,) = lines()
    assert (line["status"], line["problem"], line["body_bytes"]) == (499, "caller-gone", 4)


async def test_a_slow_inference_is_a_warning_and_says_that_it_is_slow(serve: Serve, lines: Lines) -> None:
    async with serve({}, slow_request_ms=0.000001) as client:
        await client.post("/v1/classify", content=b"image")
        await client.get("/v1/models")

    inference, other = lines()
    assert (inference["level"], inference["slow"]) == ("WARNING", True)
    assert other["level"] == "INFO"
    assert "slow" not in other


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/", "/page/page.css"])
async def test_what_machines_ask_all_the_time_is_told_at_debug_alone(serve: Serve, lines: Lines, path: str) -> None:
    async with serve() as client:
        await client.get(path)

    (line,) = lines()
    assert (line["status"], line["level"]) == (200, "DEBUG")


async def test_a_readiness_probe_that_fails_is_heard(serve: Serve, lines: Lines) -> None:
    async with serve({"ready": False}) as client:
        await client.get("/readyz")

    (line,) = lines()
    assert (line["status"], line["level"]) == (503, "WARNING")


async def test_neither_image_nor_query_nor_header_is_told(
    serve: Serve, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as client:
        await client.post(
            "/v1/classify?key=in-query",
            content=b"in-image",
            headers={"Authorization": "Bearer in-header", "Cookie": "in-cookie"},
        )

    assert "in-" not in str(lines()) + caplog.text


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("/line%0Aend%1B[31m", "/line%0Aend%1B[31m"),
        ("/" + "long" * 100, "/" + "long" * 49 + "lon"),
    ],
    ids=["control", "long"],
)
async def test_a_path_is_told_as_it_was_sent_and_no_more_of_it_than_200_characters(
    serve: Serve, lines: Lines, sent: str, told: str
) -> None:
    async with serve() as client:
        await client.get(sent)

    assert [line["path"] for line in lines()] == [told]


@pytest.mark.parametrize("raw", [b"/\x1b[31m", b"/\x9b31m", b"/a\nb"])
async def test_a_path_that_no_client_sends_cannot_speak_to_a_terminal(
    application: Callable[..., Any], lines: Lines, raw: bytes
) -> None:
    app = application()

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": raw.decode("latin-1"), "raw_path": raw, "headers": []}
    async with app.router.lifespan_context(app):
        await app({**scope, "query_string": b"", "root_path": ""}, receive, send)

    (line,) = lines()
    assert line["path"].isascii()
    assert line["path"].isprintable()
