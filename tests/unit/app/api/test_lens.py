"""The lens over HTTP: parameters, report and events, with a runtime that measures nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from app.api.routers import lens
from app.api.uploads import UPLOAD_ERRORS
from app.http.problems import TABLE
from gradless.records import ARMS, Comparison, ComparisonOptions, Progress
from models.interface import errors

pytestmark = pytest.mark.anyio

_PATH = "/debug/grad-modes"
_EVENTS = {"Accept": "text/event-stream"}
_PATIENCE_S = 30

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]
NewComparison = Callable[[str, ComparisonOptions], Comparison]
Listener = Callable[[Progress], None]
Calls = list[tuple[str | None, ComparisonOptions, bytes | None]]


@pytest.fixture
def calls() -> Calls:
    """The calls of the runtime."""
    return []


@pytest.fixture
def compare(calls: Calls, new_comparison: NewComparison) -> Callable[..., Awaitable[Comparison]]:
    """A `compare` of the runtime that reports two steps of progress."""

    async def run(
        model: str | None, options: ComparisonOptions, image: bytes | None, on_progress: Listener
    ) -> Comparison:
        calls.append((model, options, image))
        for done in range(2):
            on_progress(Progress(done, 2, "timing"))
        return new_comparison(model or "", options)

    return run


async def test_the_openapi_document_names_every_error_of_uploads_and_models(serve: Serve) -> None:
    async with serve() as client:
        responses = (await client.get("/openapi.json")).json()["paths"][_PATH]["post"]["responses"]

    for error in (*UPLOAD_ERRORS, errors.ModelDownError, errors.DrainingError, errors.ComparisonTooLargeError):
        row = TABLE[error]
        assert f"`{row.type}`" in responses[str(row.status)]["description"]


def events_of(stream: str) -> list[tuple[str, Any]]:
    """Return (event, data) of each event of a text/event-stream, without comments."""
    blocks = [block.splitlines() for block in stream.split("\n\n") if block and not block.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


async def test_without_parameters_all_arms_are_compared_on_the_default_model(
    serve: Serve, compare: Any, calls: Calls
) -> None:
    async with serve({"compare": compare}) as client:
        response = await client.post(_PATH)

    assert response.status_code == 200
    assert calls == [("fake", ComparisonOptions(arms=ARMS, batch_size=32, iterations=12, sweep=(), modules=True), None)]


@pytest.mark.parametrize(
    "query",
    [
        "arms=grad,served&batch_size=8&iterations=2&sweep=1,2,4&modules=false",
        "arms=grad&arms=served&arms=grad&batch_size=8&iterations=2&sweep=1&sweep=2,4&modules=0",
    ],
)
async def test_the_query_selects_what_to_compare(serve: Serve, compare: Any, calls: Calls, query: str) -> None:
    async with serve({"compare": compare, "names": ("a", "b")}) as client:
        await client.post(f"{_PATH}?model=b&{query}")

    options = ComparisonOptions(arms=("grad", "served"), batch_size=8, iterations=2, sweep=(1, 2, 4), modules=False)
    assert calls == [("b", options, None)]


async def test_a_json_body_takes_precedence_over_the_query(serve: Serve, compare: Any, calls: Calls) -> None:
    async with serve({"compare": compare, "names": ("a", "b")}) as client:
        body = {"model": "b", "batch_size": 2, "sweep": [1, 8]}
        await client.post(f"{_PATH}?model=a&batch_size=8&iterations=3", json=body)
        await client.post(f"{_PATH}?batch_size=8", json={})
        await client.post(f"{_PATH}?batch_size=9", headers={"Content-Type": "application/json; charset=utf-8"})

    assert [(model, options.batch_size, options.iterations, options.sweep) for model, options, _ in calls] == [
        ("b", 2, 3, (1, 8)),
        ("a", 8, 12, ()),
        ("a", 9, 12, ()),
    ]


@pytest.mark.parametrize("content_type", ["image/png", "application/x-www-form-urlencoded", None])
async def test_any_other_body_is_an_image_to_compare_on(
    serve: Serve, compare: Any, calls: Calls, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    async with serve({"compare": compare}) as client:
        await client.post(f"{_PATH}?batch_size=3", content=b"pixels", headers=headers)

    assert [(options.batch_size, image) for _, options, image in calls] == [(3, b"pixels")]


async def test_a_multipart_file_is_an_image_too_and_two_are_one_too_many(
    serve: Serve, compare: Any, calls: Calls, multipart: Callable[..., tuple[dict[str, str], bytes]]
) -> None:
    async with serve({"compare": compare}) as client:
        answers = []
        for files in ((b"one",), (b"one", b"two")):
            headers, body = multipart(*files)
            answers.append(await client.post(_PATH, content=body, headers=headers))

    assert [answer.status_code for answer in answers] == [200, 413]
    assert answers[1].json()["type"] == "urn:gradless:problem:too-many-images"
    assert [image for _, _, image in calls] == [b"one"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"batch": 4}', "batch"),
        (b'{"batch_size": 65}', "batch_size"),
        (b'{"batch_size": "many"}', "batch_size"),
        (b'{"iterations": 51}', "iterations"),
        (b'{"arms": []}', "arms"),
        (b'{"arms": ["grad", "x"]}', "arms.1"),
        (b'{"sweep": [0]}', "sweep.0"),
        (b'{"sweep": "1,2"}', "sweep"),
        (b'{"sweep": [' + b"1," * 16 + b"1]}", "sweep"),
        (b"{", "body"),
        (b"[]", "body"),
    ],
)
async def test_an_unknown_field_of_a_body_is_refused_by_name(
    serve: Serve, compare: Any, calls: Calls, body: bytes, named: str
) -> None:
    async with serve({"compare": compare}) as client:
        response = await client.post(_PATH, content=body, headers={"Content-Type": "application/json"})

    assert (response.status_code, calls) == (422, [])
    assert response.json()["type"] == "urn:gradless:problem:invalid-parameter"
    assert response.json()["detail"].startswith(f"{named}: ")


async def test_a_model_named_in_the_body_must_be_served(serve: Serve, compare: Any) -> None:
    async with serve({"compare": compare}) as client:
        response = await client.post(_PATH, json={"model": "other"})

    assert response.status_code == 404
    assert response.json()["type"] == "urn:gradless:problem:unknown-model"


async def test_json_larger_than_64_kib_is_refused(serve: Serve, compare: Any) -> None:
    async with serve({"compare": compare}) as client:
        response = await client.post(_PATH, content=b" " * 100_000, headers={"Content-Type": "application/json"})

    assert response.status_code == 413


async def test_the_report_has_an_entry_for_each_arm(serve: Serve, compare: Any) -> None:
    async with serve({"compare": compare}) as client:
        found = (await client.post(f"{_PATH}?batch_size=8&iterations=2&sweep=4&arms=grad,served,train")).json()

    assert list(found) == [
        "model",
        "fingerprint",
        "architecture",
        "device",
        "dtype",
        "backend",
        "batch_size",
        "iterations",
        "input",
        "torch",
        "arms",
        "left_out",
        "modules",
        "sweep",
        "largest_batch",
        "sentences",
    ]
    grad, served, train = found["arms"]
    assert grad == {
        "arm": "grad",
        "seconds": {"median": 0.5, "lower_quartile": 0.25, "upper_quartile": 0.75},
        "against_grad": None,
        "peak_bytes": 2000,
        "peak_note": None,
        "retained_bytes": 1000,
        "retained_tensors": 3,
        "retained_note": None,
        "output": {
            "requires_grad": True,
            "grad_fn": "AddmmBackward0",
            "is_inference": False,
            "version_counter_readable": True,
        },
        "backward": {"works": True, "error": None},
        "max_abs_difference": 0.0,
        "top1_agreement": 1.0,
        "train": None,
    }
    assert (served["peak_bytes"], served["peak_note"]) == (None, "it has memory of its own")
    assert (served["against_grad"], train["against_grad"]) == ("no difference shown", "no difference shown")
    assert train["train"] == {
        "batchnorm_buffers": 4,
        "batchnorm_buffers_moved": 4,
        "runs_agree": False,
        "eval_runs_agree": True,
        "dropouts": 1,
    }
    assert found["modules"][0] == {
        "module": "layer.0",
        "type": "Conv2d",
        "retained_bytes": 900,
        "retained_tensors": 2,
    }
    assert [(point["batch_size"], point["arms"][0]["arm"]) for point in found["sweep"]] == [(4, "grad")]
    assert found["largest_batch"] == {"memory_bytes": 10**9, "with_gradients": 100, "without_gradients": 400}


async def test_a_client_that_accepts_events_gets_progress_and_then_the_report(serve: Serve, compare: Any) -> None:
    async with serve({"compare": compare}) as client:
        plain = await client.post(f"{_PATH}?batch_size=8")
        streamed = await client.post(f"{_PATH}?batch_size=8", headers=_EVENTS)

    assert streamed.status_code == 200
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["cache-control"] == "no-store"
    assert events_of(streamed.text) == [
        ("progress", {"done": 0, "total": 2, "stage": "timing"}),
        ("progress", {"done": 1, "total": 2, "stage": "timing"}),
        ("report", plain.json()),
    ]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/event-stream;q=0, */*"])
async def test_a_client_that_does_not_accept_events_gets_only_the_report(
    serve: Serve, compare: Any, accept: str
) -> None:
    async with serve({"compare": compare}) as client:
        response = await client.post(_PATH, headers={"Accept": accept})

    assert response.json()["model"] == "fake"


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (errors.ComparisonRunningError(), 409, "comparison-running"),
        (errors.ComparisonTooLargeError(64, "bytes", 9e9, 3e9), 422, "comparison-too-large"),
        (errors.UndecodableImageError("PNG", "cut short"), 422, "undecodable-image"),
        (RuntimeError("secret"), 500, "internal-error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("headers", [_EVENTS, {}])
async def test_a_comparison_refused_at_its_start_has_the_status_of_its_error(
    serve: Serve, error: Exception, status: int, slug: str, headers: dict[str, str]
) -> None:
    async def refuse(*_: object) -> Comparison:
        raise error

    async with serve({"compare": refuse}) as client:
        response = await client.post(_PATH, headers=headers)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:gradless:problem:{slug}"
    assert "secret" not in response.text


async def test_a_refusal_of_a_large_comparison_states_the_memory_needed(serve: Serve) -> None:
    async def refuse(*_: object) -> Comparison:
        raise errors.ComparisonTooLargeError(64, "bytes", 9e9, 3e9)

    async with serve({"compare": refuse}) as client:
        detail = (await client.post(_PATH)).json()["detail"]

    assert "9000 MB" in detail
    assert "3000 MB" in detail


@pytest.mark.parametrize(
    ("error", "slug"),
    [(errors.ForwardError("fake", "secret"), "internal-error"), (asyncio.CancelledError(), "draining")],
    ids=["failure", "closed runtime"],
)
async def test_an_error_of_a_running_comparison_is_its_last_event(
    serve: Serve, error: BaseException, slug: str
) -> None:
    async def fail(*arguments: Any) -> Comparison:
        arguments[-1](Progress(0, 2, "memory"))
        await asyncio.sleep(0)
        raise error

    async with serve({"compare": fail}) as client:
        response = await client.post(_PATH, headers={**_EVENTS, "X-Request-ID": "mine"})

    progress, problem = events_of(response.text)
    assert progress[0] == "progress"
    assert problem[0] == "problem"
    assert problem[1]["type"] == f"urn:gradless:problem:{slug}"
    assert problem[1]["request_id"] == "mine"
    assert "secret" not in response.text


async def test_a_long_forward_keeps_the_connection_alive(
    serve: Serve, new_comparison: NewComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lens, "_KEEP_ALIVE_S", 0.01)

    async def dawdle(model: str, options: ComparisonOptions, _image: object, on_progress: Listener) -> Comparison:
        on_progress(Progress(0, 1, "timing"))
        for _ in range(20):
            await asyncio.sleep(0.01)
        return new_comparison(model, options)

    async with serve({"compare": dawdle}) as client:
        response = await client.post(_PATH, headers=_EVENTS)

    assert "\n\n: " in response.text
    assert [event for event, _ in events_of(response.text)] == ["progress", "report"]


@pytest.mark.parametrize("after", [0, 1])
async def test_a_client_that_disconnects_ends_the_comparison(
    application: Callable[..., FastAPI], exchange: Callable[..., Awaitable[list[dict[str, Any]]]], after: int
) -> None:
    """The client disconnects after the first event, or before it."""
    began, leaves = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def endless(*arguments: Any) -> Comparison:
        for done in range(after):
            arguments[-1](Progress(done, 10, "timing"))
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")
        raise AssertionError

    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await leaves.wait()
        return {"type": "http.disconnect"}

    app = application({"compare": endless})
    async with app.router.lifespan_context(app), asyncio.timeout(_PATIENCE_S):
        request = asyncio.create_task(exchange(app, receive, _PATH, [(b"accept", b"text/event-stream")]))
        await began.wait()
        leaves.set()
        await request
        assert ended == ["ended"]
