"""Images in JSON bodies of the native routes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest

from models.interface.errors import EmptyImageError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]
Noted = tuple[list[list[Any]], dict[str, Any]]

_PATHS = ["/v1/classify", "/v1/features", "/v1/predict"]


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _slug(response: httpx2.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    return str(response.json()["type"]).rpartition(":")[2]


@pytest.fixture
def received(prediction: Callable[..., Prediction], answer: Callable[..., Answer]) -> Noted:
    """The images of each request, and the runtime that records them; an image without bytes is at fault."""
    noted: list[list[Any]] = []

    async def infer(_model: str | None, request: InferenceRequest) -> Answer:
        noted.append(list(request.images))
        return answer(*[prediction(request.top_k) if image else EmptyImageError() for image in request.images])

    return noted, {"predict": infer}


@pytest.mark.parametrize("path", _PATHS)
async def test_base64_and_data_uris_are_images_in_order(serve: Serve, received: Noted, path: str) -> None:
    noted, runtime = received
    body = {"images": [_text(b"first"), f"data:image/png;base64,{_text(b'second')}"]}
    async with serve(runtime) as client:
        listed = await client.post(path, json=body)
        # The content decides, not the type: curl -d sends a form's.
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        unnamed = await client.post(path, content=b'\n {"images": ["%s"]}' % _text(b"third").encode(), headers=headers)

    assert (listed.status_code, unnamed.status_code) == (200, 200)
    assert noted == [[b"first", b"second"], [b"third"]]
    assert len(listed.json()["results"]) == 2


async def test_the_query_is_that_of_other_bodies(serve: Serve) -> None:
    async with serve() as client:
        answered = await client.post("/v1/classify?top_k=1&model=fake", json={"images": [_text(b"image")]})

    assert len(answered.json()["results"][0]["predictions"]) == 1


@pytest.mark.parametrize("path", _PATHS)
async def test_an_invalid_image_among_several_fails_alone(serve: Serve, received: Noted, path: str) -> None:
    _, runtime = received
    images = [b"good", b"", bytes(51), b"good"]
    async with serve(runtime, max_image_bytes=50) as client:
        answered = await client.post(path, json={"images": [_text(image) for image in images]})
        alone = await client.post(path, json={"images": [""]})

    statuses = [result.get("error", {}).get("status") for result in answered.json()["results"]]
    assert statuses == [None, 422, 413, None]
    assert (alone.status_code, _slug(alone)) == (422, "empty-image")


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b'{"images": [', 400, "invalid-input"),
        (b"[]", 400, "invalid-input"),
        (b"{}", 400, "invalid-input"),
        (b'{"images": "aW1hZ2U="}', 400, "invalid-input"),
        (b'{"images": ["aW1hZ2U="], "top_k": 3}', 400, "invalid-input"),
        (b'{"images": [{"b64": "aW1hZ2U="}]}', 400, "invalid-input"),
        (b'{"images": ["https://example.org/cat.jpg"]}', 400, "invalid-input"),
        (b'{"images": ["a cat."]}', 400, "invalid-input"),
        (b'{"images": []}', 422, "no-images"),
        (b'{"images": ["aW1hZ2U=", "aW1hZ2U=", "aW1hZ2U="]}', 413, "too-many-images"),
        (b'{"images": ["aW1hZ2UgdGhhdCBpcyB0b28gbGFyZ2U="]}', 413, "image-too-large"),
        (b'{"images": ["' + b"A" * 500, 413, "body-too-large"),
    ],
)
async def test_other_json_is_a_problem(serve: Serve, body: bytes, status: int, slug: str) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    async with serve(max_images_per_request=2, max_image_bytes=20, max_request_bytes=500) as client:
        response = await client.post("/v1/predict", content=body, headers=headers)

    assert (response.status_code, _slug(response)) == (status, slug)


@pytest.mark.parametrize("body", [b"{", b"[1, 2]", b'{"image": "AAAA"}', b"[section]\nkey = value"])
async def test_what_only_begins_as_json_does_is_a_file_unless_its_type_says_json(
    serve: Serve, received: Noted, body: bytes
) -> None:
    noted, runtime = received
    async with serve(runtime, max_image_bytes=50) as client:
        await client.post("/v1/classify", content=body)
        declared = await client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
        large = await client.post("/v1/classify", content=b"{" + bytes(50))

    assert noted == [[body]]
    assert (declared.status_code, _slug(declared)) == (400, "invalid-input")
    assert (large.status_code, _slug(large)) == (413, "image-too-large")
