"""Unknown paths, methods, parameters and models are answered with problems."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import FastAPI

from models.interface.errors import UnknownModelError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction

if TYPE_CHECKING:
    from tests.unit.conftest import Exchange

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("POST", "/v1/nothing", 404, "not-found"),
        ("GET", "/v1/models/other", 404, "unknown-model"),
        ("POST", "/v1/classify?model=other", 404, "unknown-model"),
        ("POST", "/v1/features?model=other", 404, "unknown-model"),
        ("POST", "/debug/grad-modes?model=other", 404, "unknown-model"),
        ("GET", "/v1/classify", 405, "method-not-allowed"),
        ("DELETE", "/v1/models", 405, "method-not-allowed"),
        ("POST", "/metrics", 405, "method-not-allowed"),
        ("POST", "/v1/classify?top_k=0", 422, "invalid-parameter"),
        ("POST", "/v1/classify?top_k=1001", 422, "invalid-parameter"),
        ("POST", "/v1/classify?top_k=many", 422, "invalid-parameter"),
        ("POST", "/v1/features?encoding=utf-8", 422, "invalid-parameter"),
        ("POST", "/v1/features?normalize=perhaps", 422, "invalid-parameter"),
        ("POST", "/debug/grad-modes?batch_size=65", 422, "invalid-parameter"),
        ("POST", "/debug/grad-modes?iterations=0", 422, "invalid-parameter"),
    ],
)
async def test_a_request_for_an_unknown_path_or_method_is_a_problem(
    serve: Serve, method: str, path: str, status: int, slug: str
) -> None:
    async with serve() as client:
        response = await client.request(method, path, content=b"image" if method == "POST" else b"")

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:gradless:problem:{slug}"
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_an_invalid_parameter_is_named_with_its_allowed_values(serve: Serve) -> None:
    async with serve() as client:
        response = await client.post("/v1/classify?top_k=0", content=b"image")

    assert "top_k" in response.json()["detail"]
    assert "1" in response.json()["detail"]


@pytest.mark.parametrize(
    ("runtime", "settings", "query", "status"),
    [
        ({}, {}, b"model=other", 404),
        ({"ready": False}, {}, b"", 503),
        ({}, {"api_keys": "a-key-for-inference-0001"}, b"", 401),
    ],
    ids=["an unknown model", "a runtime that drains", "no key"],
)
async def test_a_request_is_refused_before_its_image_is_read(
    application: Callable[..., FastAPI],
    exchange: Exchange,
    runtime: dict[str, Any],
    settings: dict[str, Any],
    query: bytes,
    status: int,
) -> None:
    async def receive() -> dict[str, Any]:
        pytest.fail("the body was read")

    app = application(runtime, **settings)
    async with app.router.lifespan_context(app):
        sent = await exchange(app, receive, query=query)

    assert sent[0]["status"] == status


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_disabled_debug_endpoints_are_404(serve: Serve, method: str) -> None:
    async with serve(debug_endpoints=False) as client:
        response = await client.request(method, "/debug/grad-modes")

    assert response.status_code == (404 if method == "POST" else 405)
    if method == "POST":
        assert response.json()["type"] == "urn:gradless:problem:debug-disabled"


async def test_before_its_start_the_application_is_not_ready(
    application: Callable[..., FastAPI],
) -> None:
    transport = httpx2.ASGITransport(application())
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        statuses = {
            path: (await client.get(path)).status_code for path in ("/healthz", "/readyz", "/v1/models", "/metrics")
        }

    assert statuses == {"/healthz": 200, "/readyz": 503, "/v1/models": 503, "/metrics": 200}


async def test_which_model_and_how_many_classes_reach_the_runtime(serve: Serve, answer: Callable[..., Any]) -> None:
    received: list[dict[str, Any]] = []

    async def predict(model: str | None, request: InferenceRequest) -> Any:
        received.append({"model": model, "images": request.images, "task": request.task, "top_k": request.top_k})
        return answer()

    async with serve({"predict": predict, "names": ("a", "b")}) as client:
        await client.post("/v1/classify", content=b"1")
        await client.post("/v1/classify?model=b&top_k=7", content=b"2")
        await client.post("/v1/features?model=b", content=b"3")

    assert received == [
        {"model": None, "images": [b"1"], "task": "classify", "top_k": 5},
        {"model": "b", "images": [b"2"], "task": "classify", "top_k": 7},
        {"model": "b", "images": [b"3"], "task": "features", "top_k": 0},
    ]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
async def test_a_request_without_a_model_uses_the_default_when_its_body_has_been_read(
    serve: Serve, prediction: Callable[..., Prediction], path: str
) -> None:
    names = ["fake", "second"]

    async def predict(model: str | None, request: InferenceRequest) -> Answer:
        if model is not None and model not in names:
            raise UnknownModelError(model, names)
        return Answer(model or names[0], "0123456789abcdef", 3, (3,), [prediction(request.top_k)], 1)

    async def body() -> AsyncIterator[bytes]:
        yield b"ima"
        if "fake" in names:
            names.remove("fake")
        yield b"ge"

    async with serve({"names": names, "predict": predict}) as client:
        unnamed = await client.post(path, content=body())
        names.insert(0, "fake")
        named = await client.post(f"{path}?model=fake", content=body())

    assert (unnamed.status_code, unnamed.json()["model"]) == (200, "second")
    assert (named.status_code, named.json()["type"]) == (404, "urn:gradless:problem:unknown-model")
