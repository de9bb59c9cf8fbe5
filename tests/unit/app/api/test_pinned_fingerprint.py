"""If-Match with a fingerprint: a client that stores vectors never gets vectors of another model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest

from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

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
        return Answer("fake", OTHER, 3, (3,), [prediction(request.top_k)])

    async with serve({"predict": another}) as client:
        refused = await client.post(path, content=b"image", headers={"If-Match": SERVED})
        unpinned = await client.post(path, content=b"image")

    assert refused.status_code == 412
    assert OTHER in refused.json()["detail"]
    assert unpinned.json()["fingerprint"] == OTHER
