"""The table of image endpoints is what routers, Server-Timing and the OpenAPI document use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest
from fastapi import FastAPI

from app.api.inference import IMAGE_ENDPOINTS, ImageEndpoint
from app.http.problems import TABLE

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
