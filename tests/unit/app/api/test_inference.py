"""Routers, Server-Timing and the OpenAPI document use the table of image endpoints. A request may name the fingerprint
that it wants an answer of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest
from fastapi import FastAPI

from app.api.inference import IMAGE_ENDPOINTS, ImageEndpoint
from app.http.problems import TABLE
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


def _path(endpoint: ImageEndpoint) -> str:
    return endpoint.path


def test_every_route_that_accepts_images_is_in_the_table(application: Callable[..., FastAPI]) -> None:
    document = application().openapi()["paths"]
    accepting_only_images = {
        path
        for path, operations in document.items()
        for operation in operations.values()
        if "image/*" in operation.get("requestBody", {}).get("content", {}) and operation["requestBody"]["required"]
    }
    assert accepting_only_images == {endpoint.path for endpoint in IMAGE_ENDPOINTS}


@pytest.mark.parametrize("endpoint", IMAGE_ENDPOINTS, ids=_path)
def test_every_error_of_the_table_is_documented(application: Callable[..., FastAPI], endpoint: ImageEndpoint) -> None:
    responses = application().openapi()["paths"][endpoint.path]["post"]["responses"]
    for error in endpoint.errors:
        assert TABLE[error].type in responses[str(TABLE[error].status)]["description"]


@pytest.mark.parametrize("endpoint", IMAGE_ENDPOINTS, ids=_path)
async def test_every_endpoint_of_the_table_sends_server_timing(serve: Serve, endpoint: ImageEndpoint) -> None:
    async with serve() as client:
        response = await client.post(endpoint.path, content=b"image")
    assert "total;dur=" in response.headers["server-timing"]


async def test_a_query_is_validated_before_the_body_is_read(serve: Serve) -> None:
    async with serve(max_request_bytes=1, max_image_bytes=1) as client:
        response = await client.post("/v1/classify?top_k=0", content=b"too large a body")
    assert response.json()["type"] == "urn:gradless:problem:invalid-parameter"


SERVED = "0123456789abcdef"
OTHER = "fedcba9876543210"


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
@pytest.mark.parametrize("pinned", [SERVED, f'"{SERVED}"', f'"{OTHER}", "{SERVED}"', "*"])
async def test_a_request_with_the_served_fingerprint_is_answered(serve: Serve, path: str, pinned: str) -> None:
    async with serve() as client:
        answer = await client.post(path, content=b"image", headers={"If-Match": pinned})

    assert answer.status_code == 200
    assert answer.json()["fingerprint"] == SERVED


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
@pytest.mark.parametrize("pinned", [OTHER, f'"{OTHER}"', ""])
async def test_another_fingerprint_is_refused_with_the_served_one(serve: Serve, path: str, pinned: str) -> None:
    async with serve() as client:
        answer = await client.post(path, content=b"image", headers={"If-Match": pinned})

    assert answer.status_code == 412
    assert answer.json()["type"] == "urn:gradless:problem:fingerprint-mismatch"
    assert SERVED in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
async def test_a_version_loaded_while_the_body_was_read_does_not_answer_for_the_pinned_one(
    serve: Serve, prediction: Callable[..., Prediction], path: str
) -> None:
    async def another(_: str | None, request: InferenceRequest) -> Answer:
        return Answer("fake", OTHER, 3, (3,), [prediction(request.top_k)], 1)

    async with serve({"predict": another}) as client:
        refused = await client.post(path, content=b"image", headers={"If-Match": SERVED})
        unpinned = await client.post(path, content=b"image")

    assert refused.status_code == 412
    assert OTHER in refused.json()["detail"]
    assert unpinned.json()["fingerprint"] == OTHER
