"""POST /v1/embeddings: every form of an image, every encoding of a vector, every error in OpenAI's form."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI

from models.interface import errors
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction

if TYPE_CHECKING:
    from tests.unit.conftest import Exchange

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

_PATH = "/v1/embeddings"
# Its base64 has characters that the URL-safe alphabet replaces, and padding.
_IMAGE = b"\xfb\xff\xfe?"
_TEXT = "+//+Pw=="
_URI = f"data:image/png;base64,{_TEXT}"
_BAD = "QkFE"
_PART = {"type": "image_url", "image_url": {"url": _URI}}
_WORDS = {"type": "text", "text": "Represent the given image."}


@pytest.fixture
def noted() -> list[InferenceRequest]:
    """The requests that the runtime gets."""
    return []


@pytest.fixture
def runtime(
    noted: list[InferenceRequest], prediction: Callable[..., Prediction], answer: Callable[..., Answer]
) -> dict[str, Any]:
    """Options of a runtime: the vector of an image is its number of bytes, 0, 4; the image BAD cannot be decoded."""

    async def infer(_model: str | None, request: InferenceRequest) -> Answer:
        noted.append(request)
        files = [image for image in request.images if isinstance(image, bytes)]
        return answer(
            *[
                errors.UndecodableImageError("PNG", "it is cut short")
                if file == b"BAD"
                else prediction(0, (len(file), 0, 4))
                for file in files
            ]
        )

    return {"predict": infer}


def _error(response: httpx2.Response) -> tuple[int, str, str, str | None]:
    """Return status, type, code and parameter."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["message"]
    return response.status_code, error["type"], error["code"], error["param"]


def _vectors(response: httpx2.Response) -> np.ndarray:
    embedded = [each["embedding"] for each in response.json()["data"]]
    return np.array(
        [np.frombuffer(base64.b64decode(each), "<f4") if isinstance(each, str) else each for each in embedded]
    )


@pytest.mark.parametrize(
    "sent",
    [
        {"input": _URI},
        {"input": _TEXT},
        {"input": "-__-Pw"},
        {"input": [_URI]},
        {"input": [{"image": _TEXT}]},
        {"input": {"image": _URI}},
        {"input": [_PART]},
        {"input": [{"type": "image_url", "image_url": _URI}]},
        {"input": [{"type": "image_url", "url": _URI}]},
        {"messages": [{"role": "user", "content": [_PART, _WORDS]}]},
        {
            "messages": [
                {"role": "system", "content": "Represent it."},
                {"role": "user", "content": [_WORDS, _PART]},
                {"role": "assistant", "content": [_WORDS]},
            ]
        },
    ],
)
async def test_an_image_is_answered_in_every_form_that_clients_send(
    serve: Serve, runtime: dict[str, Any], noted: list[InferenceRequest], sent: dict[str, Any]
) -> None:
    async with serve(runtime) as client:
        response = await client.post(_PATH, json=sent)

    assert response.status_code == 200, response.text
    assert [(request.task, list(request.images)) for request in noted] == [("features", [_IMAGE])]


async def test_vectors_of_length_1_are_in_the_order_of_the_images(serve: Serve, runtime: dict[str, Any]) -> None:
    async with serve(runtime) as client:
        response = await client.post(_PATH, json={"model": "fake", "input": ["YWJj", _URI]})

    body = response.json()
    vectors = [each.pop("embedding") for each in body["data"]]
    assert vectors == [pytest.approx([0.6, 0, 0.8]), pytest.approx([0.5**0.5, 0, 0.5**0.5])]
    assert body == {
        "object": "list",
        "model": "fake",
        "data": [{"object": "embedding", "index": index} for index in range(2)],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
        "system_fingerprint": "0123456789abcdef",
    }
    assert "forward" in response.headers["server-timing"]


@pytest.mark.parametrize("key", ["encoding_format", "embedding_type"])
async def test_base64_has_the_same_numbers_as_float32(serve: Serve, runtime: dict[str, Any], key: str) -> None:
    async with serve(runtime) as client:
        numbers = await client.post(_PATH, json={"input": ["YWJj", _URI], key: "float"})
        encoded = await client.post(_PATH, json={"input": ["YWJj", _URI], key: "base64"})

    assert all(isinstance(each["embedding"], str) for each in encoded.json()["data"])
    assert np.array_equal(_vectors(encoded), _vectors(numbers))
    assert _vectors(numbers)[0] == pytest.approx([0.6, 0, 0.8])


@pytest.mark.parametrize("key", ["normalize", "normalized"])
async def test_vectors_keep_their_length_on_request(serve: Serve, runtime: dict[str, Any], key: str) -> None:
    async with serve(runtime) as client:
        kept = await client.post(_PATH, json={"input": "YWJj", key: False})
        scaled = await client.post(_PATH, json={"input": "YWJj", key: True})

    assert _vectors(kept).tolist() == [[3, 0, 4]]
    assert np.linalg.norm(_vectors(scaled)) == pytest.approx(1)


@pytest.mark.parametrize("name", ["fake", "fake@features", "fake@pixels@features", None])
async def test_the_model_is_a_name_a_view_or_the_default(serve: Serve, runtime: dict[str, Any], name: str) -> None:
    async with serve(runtime) as client:
        response = await client.post(_PATH, json={"model": name, "input": _URI})

    assert response.json()["model"] == (name or "fake")


@pytest.mark.parametrize(
    "more",
    [
        {"user": "u-1", "input_type": "passage", "truncate": "NONE", "late_chunking": False},
        {"dimensions": 0},
        {"dimensions": 3},
        {"dimensions": None, "encoding_format": None, "modality": None, "normalized": None},
        {"modality": "image"},
        {"modality": ["image"]},
    ],
)
async def test_other_parameters_of_clients_are_accepted(
    serve: Serve, runtime: dict[str, Any], more: dict[str, Any]
) -> None:
    async with serve(runtime) as client:
        response = await client.post(_PATH, json={"input": _URI, **more})

    assert response.status_code == 200
    assert len(_vectors(response)) == 1


@pytest.mark.parametrize(
    ("sent", "status", "code", "key"),
    [
        ({"model": "nobody"}, 404, "model_not_found", None),
        ({"model": "fake@logits"}, 404, "model_not_found", None),
        ({"model": 3}, 400, "invalid-input", "model"),
        ({"dimensions": 2}, 400, "invalid-input", "dimensions"),
        ({"modality": "text"}, 400, "invalid-input", "modality"),
        ({"modality": ["image", "text"]}, 400, "invalid-input", "modality"),
        ({"encoding_format": "binary"}, 400, "invalid-input", "encoding_format"),
        ({"embedding_type": ["float"]}, 400, "invalid-input", "embedding_type"),
        ({"normalized": "no"}, 400, "invalid-input", "normalized"),
        ({"input": None}, 400, "invalid-input", "input"),
        ({"input": []}, 400, "no-images", "input"),
        ({"input": "https://example.org/cat.jpg"}, 400, "invalid-input", "input"),
        ({"input": {"image": "http://example.org/cat.jpg"}}, 400, "invalid-input", "input"),
        ({"input": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}, 400, "invalid-input", "input"),
        ({"input": "a photo of a cat."}, 400, "invalid-input", "input"),
        ({"input": [{"text": "a cat"}]}, 400, "invalid-input", "input"),
        ({"input": [1, 2, 3]}, 400, "invalid-input", "input"),
        ({"input": [[1, 2, 3]]}, 400, "invalid-input", "input"),
        ({"input": _BAD}, 400, "undecodable-image", "input"),
        ({"input": [_TEXT] * 4}, 413, "too-many-images", None),
        ({"input": base64.b64encode(bytes(100)).decode()}, 413, "image-too-large", "input"),
        ({"input": None, "messages": []}, 400, "invalid-input", "messages"),
        ({"input": None, "messages": "a cat"}, 400, "invalid-input", "messages"),
        ({"input": None, "messages": [{"role": "user", "content": "a cat"}]}, 400, "invalid-input", "messages"),
        ({"input": None, "messages": [{"role": "user", "content": [_PART] * 2}]}, 400, "invalid-input", "messages"),
    ],
)
async def test_what_is_wrong_with_a_request_is_named(
    serve: Serve, runtime: dict[str, Any], sent: dict[str, Any], status: int, code: str, key: str | None
) -> None:
    async with serve(runtime, max_image_bytes=99, max_images_per_request=3) as client:
        response = await client.post(_PATH, json={"input": _URI, **sent})

    assert _error(response) == (status, "invalid_request_error", code, key)


async def test_the_message_names_the_image_at_fault(serve: Serve, runtime: dict[str, Any]) -> None:
    async with serve(runtime) as client:
        sent = [[_URI, each] for each in (_BAD, "https://example.org/cat.jpg", "a cat.", {"text": "a cat"})]
        messages = [(await client.post(_PATH, json={"input": each})).json()["error"]["message"] for each in sent]

    assert all(message.startswith("input[1]: ") for message in messages)
    assert "addresses are not fetched" in messages[1]


@pytest.mark.parametrize("body", [b"", b"\x89PNG", b"[]", b'"text"', b"{", b'{"input": NaN}'])
async def test_a_body_that_is_no_json_object_is_refused(serve: Serve, body: bytes) -> None:
    async with serve() as client:
        response = await client.post(_PATH, content=body)

    assert _error(response) == (400, "invalid_request_error", "invalid-input", None)


@pytest.mark.parametrize(
    ("raised", "status", "kind", "code"),
    [
        (errors.OverloadedError(1, 3), 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.DecodersBusyError(3), 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.DeadlineExceededError(1), 504, "server_error", "deadline-exceeded"),
        (errors.ModelDownError("fake"), 503, "server_error", "model-down"),
        (errors.ModelGoneError("fake"), 503, "server_error", "model-gone"),
        (errors.OutOfMemoryError("fake"), 503, "server_error", "out-of-memory"),
        (errors.ForwardError("fake", "secret"), 500, "server_error", "internal-error"),
        (RuntimeError("secret"), 500, "server_error", "internal-error"),
    ],
)
async def test_faults_of_the_service_have_types_that_clients_act_on(
    serve: Serve, raised: Exception, status: int, kind: str, code: str
) -> None:
    async def fail(*_: object) -> Answer:
        raise raised

    async with serve({"predict": fail}) as client:
        response = await client.post(_PATH, json={"input": _URI})

    assert _error(response) == (status, kind, code, None)
    assert (response.headers.get("retry-after") == "3") == (status == 429)
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("headers", "ready", "status", "kind", "code"),
    [
        ([], True, 401, "invalid_request_error", "invalid_api_key"),
        ([(b"authorization", b"Bearer a-key-that-is-unknown")], True, 401, "invalid_request_error", "invalid_api_key"),
        ([(b"authorization", b"Bearer a-key-of-a-scraper-1")], True, 403, "invalid_request_error", "forbidden"),
        ([(b"authorization", b"Bearer a-key-for-inference")], False, 503, "server_error", "draining"),
    ],
)
async def test_rights_and_drain_are_checked_before_the_body_is_read(
    application: Callable[..., FastAPI],
    exchange: Exchange,
    headers: list[tuple[bytes, bytes]],
    ready: bool,  # noqa: FBT001 - a parameter of pytest
    status: int,
    kind: str,
    code: str,
) -> None:
    async def receive() -> dict[str, Any]:
        pytest.fail("the body was read")

    app = application({"ready": ready}, api_keys="inference:a-key-for-inference, metrics:a-key-of-a-scraper-1")
    async with app.router.lifespan_context(app):
        start, body = await exchange(app, receive, _PATH, headers)

    sent = [(name.decode(), value.decode()) for name, value in start["headers"]]
    response = httpx2.Response(start["status"], headers=sent, content=body["body"])
    assert _error(response) == (status, kind, code, None)
    assert ("www-authenticate" in response.headers) == (status == 401)


async def test_a_key_is_sent_as_openai_does(serve: Serve, runtime: dict[str, Any]) -> None:
    sent = {"json": {"input": _URI}, "headers": {"Authorization": "Bearer a-key-for-inference"}}
    async with serve(runtime, api_keys="inference:a-key-for-inference") as client:
        needed = await client.post(_PATH, **sent)
    async with serve(runtime) as client:
        ignored = await client.post(_PATH, **sent)

    assert (needed.status_code, ignored.status_code) == (200, 200)


async def test_limits_of_the_request_have_openais_form(serve: Serve) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with serve(max_request_bytes=500, max_image_bytes=100, read_timeout_s=0.05) as client:
        large = await client.post(_PATH, content=b"{" + b" " * 500)
        compressed = await client.post(_PATH, content=b"{}", headers={"Content-Encoding": "gzip"})
        pinned = await client.post(_PATH, json={"input": _URI}, headers={"If-Match": "another"})
        slow = await client.post(_PATH, content=stalling())
        read = await client.get(_PATH)

    kind = "invalid_request_error"
    assert _error(large) == (413, kind, "body-too-large", None)
    assert _error(compressed) == (415, kind, "unsupported-content-encoding", None)
    assert _error(pinned) == (412, kind, "fingerprint-mismatch", None)
    assert _error(slow) == (408, "server_error", "slow-body", None)
    assert _error(read) == (405, kind, "method-not-allowed", None)
    assert read.headers["allow"] == "POST"
