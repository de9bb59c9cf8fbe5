"""The routes of Hugging Face's Inference Endpoints: bodies of its clients, both tasks, and errors."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

_IMAGE = base64.b64encode(b"image").decode()
_URI = f"data:image/png;base64,{_IMAGE}"
_ROUTES = ["/", "/hf/fake", "/hf/fake%40pixels"]


def _classes(top_k: int) -> list[dict[str, object]]:
    """Return the answer for one image of the fake model."""
    return [{"label": f"class {index}", "score": 0.5 / (index + 1)} for index in range(top_k)]


@pytest.mark.parametrize("path", _ROUTES)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"content": b"image"}, _classes(5)),
        ({"json": {"inputs": _IMAGE}}, _classes(5)),
        ({"json": {"inputs": _URI, "parameters": {"top_k": 2, "function_to_apply": "softmax"}}}, _classes(2)),
        ({"json": {"inputs": _IMAGE, "parameters": {"top_k": None, "function_to_apply": None}}}, _classes(5)),
        ({"json": {"inputs": [_IMAGE], "parameters": {"top_k": 1}}}, [_classes(1)]),
        ({"json": {"inputs": [_IMAGE, _URI]}}, [_classes(5), _classes(5)]),
        ({"files": [("a", b"one"), ("b", b"two")]}, [_classes(5), _classes(5)]),
    ],
)
async def test_images_are_classified(serve: Serve, path: str, body: dict[str, Any], expected: object) -> None:
    async with serve() as client:
        response = await client.post(path, **body)

    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == expected


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/hf/fake?task=feature-extraction", {"inputs": _IMAGE}, [[3.0, 0.0, 4.0]]),
        ("/?task=feature-extraction", {"inputs": [_IMAGE, _URI], "normalize": False}, [[3.0, 0.0, 4.0]] * 2),
        ("/hf/fake@features", {"inputs": _IMAGE}, [[3.0, 0.0, 4.0]]),
        ("/", {"inputs": _URI, "normalize": True}, [[pytest.approx(0.6), 0.0, pytest.approx(0.8)]]),
    ],
)
async def test_features_are_extracted_where_the_address_or_the_body_says_so(
    serve: Serve, path: str, body: dict[str, Any], expected: object
) -> None:
    async with serve() as client:
        assert (await client.post(path, json=body)).json() == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", {"inputs": "a photograph of a cat"}),
        ("/", {"inputs": "https://example.org/cat.jpg"}),
        ("/", {"inputs": []}),
        ("/", {"image": _IMAGE}),
        ("/", [_IMAGE]),
        ("/", {"inputs": _IMAGE, "parameters": {"function_to_apply": "sigmoid"}}),
        ("/", {"inputs": _IMAGE, "parameters": {"function_to_apply": ["softmax"]}}),
        ("/", {"inputs": _IMAGE, "parameters": {"top_k": -1}}),
        ("/", {"inputs": _IMAGE, "parameters": ["top_k"]}),
        ("/", {"inputs": _IMAGE, "normalize": "yes"}),
        ("/", {"inputs": _IMAGE, "normalize": [True]}),
        ("/?task=text-generation", {"inputs": _IMAGE}),
    ],
)
async def test_what_cannot_be_answered_is_a_bad_request(serve: Serve, path: str, body: Any) -> None:
    async with serve() as client:
        response = await client.post(path, json=body)

    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")
    assert response.json().keys() == {"error"}


async def test_the_page_stays_where_it_is(serve: Serve) -> None:
    async with serve() as client:
        page = await client.get("/")
        refused = await client.put("/")

    assert page.headers["content-type"].startswith("text/html")
    assert refused.headers["allow"] == "GET, HEAD, POST"


async def test_health_needs_no_key(serve: Serve) -> None:
    async with serve(api_keys="inference:key-of-an-inferrer") as client:
        assert (await client.get("/health")).status_code == 200
    async with serve({"ready": False}) as client:
        refused = await client.get("/health")

    assert (refused.status_code, refused.json().keys()) == (503, {"error"})
