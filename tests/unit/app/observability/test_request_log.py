"""One log line per request, with nothing that may be a client's secret."""

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


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Read the fields of the request lines so far, with their level."""
    caplog.set_level(logging.DEBUG, "gradless.requests")

    def read() -> list[dict[str, Any]]:
        records = [record for record in caplog.records if record.name == "gradless.requests"]
        # Attributes that every record has; Ray, once it is imported, adds one.
        common = set(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
        return [
            {"level": record.levelname} | {name: value for name, value in vars(record).items() if name not in common}
            for record in records
        ]

    return read


Lines = Callable[[], list[dict[str, Any]]]


async def test_a_request_line_has_the_request_and_the_time_in_each_stage(serve: Serve, lines: Lines) -> None:
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


async def test_a_request_with_several_images_has_one_line(
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
async def test_the_line_of_a_refusal_has_its_problem_and_a_level_by_status(
    serve: Serve, lines: Lines, error: Exception, status: int, problem: str, level: str
) -> None:
    async def fail(*_arguments: object, **_options: object) -> Answer:
        raise error

    async with serve({"predict": fail}) as client:
        await client.post("/v1/classify", content=b"image")

    (line,) = lines()
    assert (line["status"], line["problem"], line["level"]) == (status, problem, level)


async def test_a_request_whose_client_disconnects_has_a_line(
    application: Callable[..., Any], exchange: Callable[..., Any], lines: Lines
) -> None:
    app = application()
    messages = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    async with app.router.lifespan_context(app):
        await exchange(app, receive)

    (line,) = lines()
    assert (line["status"], line["problem"], line["body_bytes"]) == (499, "client-disconnected", 4)


async def test_a_slow_inference_request_is_a_warning_marked_slow(serve: Serve, lines: Lines) -> None:
    async with serve({}, slow_request_ms=0.000001) as client:
        await client.post("/v1/classify", content=b"image")
        await client.get("/v1/models")

    inference, other = lines()
    assert (inference["level"], inference["slow"]) == ("WARNING", True)
    assert other["level"] == "INFO"
    assert "slow" not in other


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/", "/page/page.css"])
async def test_routine_requests_are_logged_at_debug_level(serve: Serve, lines: Lines, path: str) -> None:
    async with serve() as client:
        await client.get(path)

    (line,) = lines()
    assert (line["status"], line["level"]) == (200, "DEBUG")


async def test_a_failing_readiness_probe_is_a_warning(serve: Serve, lines: Lines) -> None:
    async with serve({"ready": False}) as client:
        await client.get("/readyz")

    (line,) = lines()
    assert (line["status"], line["level"]) == (503, "WARNING")


async def test_images_queries_and_headers_are_not_logged(
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
    ("sent", "logged"),
    [
        ("/line%0Aend%1B[31m", "/line%0Aend%1B[31m"),
        ("/" + "long" * 100, "/" + "long" * 49 + "lon"),
    ],
    ids=["control", "long"],
)
async def test_a_path_is_logged_undecoded_and_cut_after_200_characters(
    serve: Serve, lines: Lines, sent: str, logged: str
) -> None:
    async with serve() as client:
        await client.get(sent)

    assert [line["path"] for line in lines()] == [logged]


@pytest.mark.parametrize("raw", [b"/\x1b[31m", b"/\x9b31m", b"/a\nb"])
async def test_a_path_with_control_characters_is_escaped(
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
