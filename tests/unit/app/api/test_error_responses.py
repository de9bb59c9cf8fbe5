"""Errors of the runtime are answered with their problem; internal details are never sent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest

from models.interface import errors
from models.interface.results import Answer, Prediction

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

_REFUSALS = [
    (errors.OverloadedError(8, 2.1), 429, "overloaded"),
    (errors.DrainingError(), 503, "draining"),
    (errors.DeadlineExceededError(2.5), 504, "deadline-exceeded"),
    (errors.UnknownModelError("b", ["a"]), 404, "unknown-model"),
    (errors.ImageTooLargeError(10), 413, "image-too-large"),
]

_IMAGE_FAULTS = [
    (errors.EmptyImageError(), 422, "empty-image"),
    (errors.UnsupportedFormatError(["PNG"]), 415, "unsupported-format"),
    (errors.UndecodableImageError("PNG", "cut short"), 422, "undecodable-image"),
    (errors.TooManyPixelsError(8, 8, 9), 422, "too-many-pixels"),
    (errors.TooElongatedError(1, 99, 50), 422, "too-elongated"),
]

_INTERNAL = [
    errors.ForwardError("fake", "secret 7"),
    errors.GradlessError("secret 7"),
    RuntimeError("secret 7"),
    TimeoutError("secret 7"),
    OSError("secret 7"),
]


def _raising(error: Exception) -> dict[str, Any]:
    """A runtime whose every method fails."""

    async def fail(*_arguments: object, **_options: object) -> Any:
        raise error

    return {"predict": fail, "compare": fail}


def _name(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, Exception) else None


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
@pytest.mark.parametrize(("error", "status", "slug"), _REFUSALS, ids=_name)
async def test_a_refusal_of_the_runtime_is_a_problem_of_its_own_type(
    serve: Serve, path: str, error: Exception, status: int, slug: str
) -> None:
    async with serve(_raising(error)) as client:
        response = await client.post(path, content=b"image")

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["type"] == f"urn:gradless:problem:{slug}"
    assert body["status"] == status
    assert body["detail"] == str(error)
    assert body["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
@pytest.mark.parametrize(("error", "status", "slug"), _IMAGE_FAULTS, ids=_name)
async def test_the_error_of_a_single_image_is_the_error_of_the_request(
    serve: Serve, answer: Callable[..., Answer], path: str, error: Exception, status: int, slug: str
) -> None:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(error)

    async with serve({"predict": predict}) as client:
        response = await client.post(path, content=b"image")

    assert response.status_code == status
    assert response.json()["type"] == f"urn:gradless:problem:{slug}"
    assert response.json()["detail"] == str(error)


@pytest.mark.parametrize(("error", "status", "slug"), _IMAGE_FAULTS, ids=_name)
async def test_an_invalid_image_among_several_has_a_problem_as_its_result(
    serve: Serve,
    answer: Callable[..., Answer],
    prediction: Callable[..., Prediction],
    multipart: Callable[..., tuple[dict[str, str], bytes]],
    error: Exception,
    status: int,
    slug: str,
) -> None:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(prediction(), error, prediction())

    headers, body = multipart(b"a", b"b", b"c")
    async with serve({"predict": predict}) as client:
        responses = [
            await client.post(path, content=body, headers=headers) for path in ("/v1/classify", "/v1/features")
        ]

    for response in responses:
        assert response.status_code == 200
        good, bad, also_good = response.json()["results"]
        assert "error" not in good | also_good
        assert bad["error"]["type"] == f"urn:gradless:problem:{slug}"
        assert (bad["error"]["status"], bad["error"]["detail"]) == (status, str(error))


@pytest.mark.parametrize("error", _INTERNAL, ids=_name)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features", "/debug/grad-modes"])
async def test_an_internal_error_is_a_500_with_the_request_id_and_without_detail(
    serve: Serve, path: str, error: Exception
) -> None:
    async with serve(_raising(error)) as client:
        response = await client.post(path, content=b"image", headers={"X-Request-ID": "mine-1"})

    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "mine-1"
    assert response.json() == {
        "type": "urn:gradless:problem:internal-error",
        "title": "Internal error",
        "status": 500,
        "request_id": "mine-1",
    }
    assert "secret" not in response.text


async def test_an_application_that_failed_once_answers_the_next_request(
    serve: Serve, answer: Callable[..., Answer]
) -> None:
    failures = iter([RuntimeError("once")])

    async def predict(*_arguments: object, **_options: object) -> Answer:
        for failure in failures:
            raise failure
        return answer()

    async with serve({"predict": predict}) as client:
        statuses = [(await client.post("/v1/classify", content=b"image")).status_code for _ in range(2)]

    assert statuses == [500, 200]
