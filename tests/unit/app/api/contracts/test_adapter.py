"""Routes of another protocol: they predict along the native path, and their errors have the form of the protocol."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from app.api.contracts.adapter import UnknownPath, contract_router, predict, upload_for
from app.api.dependencies import admin_allowed
from app.api.json_images import images_of, parse_object
from app.api.uploads import read_json_or_images
from app.http.contract import Contract, json_errors
from models.interface.errors import OverloadedError, UndecodableImageError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction

pytestmark = pytest.mark.anyio

_SAMPLE = Contract("sample", json_errors(lambda status, row, message: {"code": status, "why": row.slug, "is": message}))
_KEYS = {"api_keys": "inference:key-of-an-inferrer"}
_BAD = b"no image"


async def _infer(request: Request, name: str) -> object:
    upload, view = await upload_for(request, name, request.query_params.get("version"))
    sent = await read_json_or_images(request)
    images = sent.files
    if sent.json is not None:
        images = await images_of(request, (await parse_object(request, sent.json))["images"])
    answer, predictions = await predict(upload, images, InferenceRequest("classify", top_k=1, all_probabilities=True))
    everything = [found.all_probabilities.tolist() for found in predictions if found.all_probabilities is not None]
    return {"model": answer.model, "view": view.name, "probabilities": everything}


async def _load(request: Request) -> Response:
    await admin_allowed(request)
    return Response()


async def _fail(request: Request) -> Response:
    del request
    raise RuntimeError("secret")


@asynccontextmanager
async def _client(app: FastAPI, address: str = "127.0.0.1") -> AsyncIterator[httpx2.AsyncClient]:
    router = contract_router(_SAMPLE)
    router.add_api_route("/sample/{name:path}/infer", _infer, methods=["POST"])
    router.add_api_route("/sample/load", _load, methods=["POST"])
    router.add_api_route("/sample/fail", _fail)
    router.routes.append(UnknownPath(_SAMPLE, "/sample/"))
    app.router.routes.extend(router.routes)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False, client=(address, 123))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _why(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    assert response.json()["code"] == response.status_code
    return response.status_code, response.json()["why"]


@pytest.fixture
def with_bad_images(prediction: Callable[..., Prediction]) -> dict[str, Any]:
    """Options of a runtime that cannot decode `_BAD`."""

    async def infer(model: str | None, request: InferenceRequest) -> Answer:
        del model
        fault = UndecodableImageError("PNG", "it is cut short")
        results = [fault if image == _BAD else prediction(1, dense=True) for image in request.images]
        return Answer("fake", "0123456789abcdef", 3, (3,), results, 1)

    return {"predict": infer}


@pytest.mark.parametrize(
    "body",
    [
        {"content": b"image"},
        {"json": {"images": [_text(b"image")]}},
        {"content": b' {"images": ["data:image/png;base64,%s"]}' % _text(b"image").encode()},
        # A part without a file name is an image too.
        {"files": {"data": (None, b"image")}},
    ],
)
async def test_a_file_a_form_and_json_are_answered(application: Callable[..., FastAPI], body: dict[str, Any]) -> None:
    async with _client(application()) as client:
        response = await client.post("/sample/fake@pixels/infer", **body)

    assert response.status_code == 200
    assert response.json() == {
        "model": "fake",
        "view": "fake@pixels",
        "probabilities": [pytest.approx([0.5 / (index + 1) for index in range(10)])],
    }
    assert "forward" in response.headers["server-timing"]


async def test_unknown_paths_are_counted_under_their_protocol(application: Callable[..., FastAPI]) -> None:
    async with _client(application()) as client:
        await client.get("/sample/elsewhere")
        exposition = (await client.get("/metrics")).text.splitlines()

    unknown = 'contract="sample",method="GET",route="/sample/{path}"'
    assert f'gradless_requests_total{{code="404",{unknown}}} 1.0' in exposition


# The address of a model in each protocol, and the route of its requests in the metrics.
_ADDRESSES = {
    "torchserve": ("/predictions/fake", "/predictions/{name}"),
    "kserve_v1": ("/v1/models/fake:predict", "/v1/models/{name}:predict"),
    "sagemaker": ("/invocations?model=fake", "/invocations"),
    "huggingface": ("/hf/fake", "/hf/{name}"),
    "oip": ("/v2/models/fake/versions/1/infer", "/v2/models/{name}/infer"),
    "openai": ("/v1/embeddings", "/v1/embeddings"),
}
# The Open Inference Protocol takes a file of this length; the others ignore the header.
_ONE_FILE = {"content": b"\xff", "headers": {"Inference-Header-Content-Length": "0"}}


@pytest.mark.parametrize("protocol", _ADDRESSES)
async def test_requests_are_counted_under_their_protocol(application: Callable[..., FastAPI], protocol: str) -> None:
    address, route = _ADDRESSES[protocol]
    sent: dict[str, Any] = {"json": {"input": _text(b"image")}} if protocol == "openai" else _ONE_FILE
    async with _client(application()) as client:
        answer = await client.post(address, **sent)
        exposition = (await client.get("/metrics")).text.splitlines()

    labels = f'contract="{protocol}",method="POST",route="{route}"'
    assert answer.status_code == 200
    assert f'gradless_requests_total{{code="200",{labels}}} 1.0' in exposition
    assert f'gradless_request_duration_seconds_count{{code="2xx",{labels}}} 1.0' in exposition


@pytest.mark.parametrize("protocol", ["kserve_v1", "sagemaker", "huggingface", "oip"])
async def test_errors_of_most_protocols_are_a_text(application: Callable[..., FastAPI], protocol: str) -> None:
    address, _ = _ADDRESSES[protocol]

    def told(answer: httpx2.Response) -> int:
        assert answer.headers["content-type"] == "application/json"
        assert answer.json().keys() == {"error"}
        return answer.status_code

    async with _client(application({"predict": _overloaded})) as client:
        full = await client.post(address, **_ONE_FILE)
        wrong = await client.get(address)
        assert told(await client.post(address.replace("fake", "nobody"), **_ONE_FILE)) == 404
    async with _client(application({"ready": False})) as client:
        assert told(await client.post(address, **_ONE_FILE)) == 503
    async with _client(application(**_KEYS)) as client:
        assert told(await client.post(address, **_ONE_FILE)) == 401

    assert (told(full), full.headers["retry-after"]) == (429, "3")
    assert (told(wrong), wrong.headers["allow"]) == (405, "POST")


async def test_one_image_at_fault_fails_the_request_and_is_named(
    application: Callable[..., FastAPI], with_bad_images: dict[str, Any]
) -> None:
    images = [b"image", _BAD]
    async with _client(application(with_bad_images)) as client:
        response = await client.post("/sample/fake/infer", json={"images": [_text(image) for image in images]})
        exposition = (await client.get("/metrics")).text

    assert _why(response) == (400, "undecodable-image")
    assert response.json()["is"].startswith("image 1: ")
    assert 'gradless_rejected_total{reason="bad_image"} 1.0' in exposition


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (["https://example.org/cat.jpg"], (400, "invalid-input")),
        (["file:///etc/passwd"], (400, "invalid-input")),
        (["a cat."], (400, "invalid-input")),
        ([{"b64": "AAAA"}], (400, "invalid-input")),
        ([], (400, "no-images")),
        ([_text(bytes(100))], (413, "image-too-large")),
        ([_text(b"image")] * 3, (413, "too-many-images")),
    ],
)
async def test_images_in_json_have_the_limits_of_files(
    application: Callable[..., FastAPI], images: list[Any], problem: tuple[int, str]
) -> None:
    async with _client(application(max_image_bytes=99, max_images_per_request=2)) as client:
        assert _why(await client.post("/sample/fake/infer", json={"images": images})) == problem


async def test_decoded_images_count_as_memory_of_bodies(application: Callable[..., FastAPI]) -> None:
    body = {"images": [_text(bytes(800))]}
    limits = {"max_image_bytes": 900, "max_request_bytes": 1500}
    async with _client(application(**limits, max_held_bytes=2000)) as client:
        assert _why(await client.post("/sample/fake/infer", json=body)) == (429, "too-much-at-once")
    async with _client(application(**limits, max_held_bytes=3500)) as client:
        # What a request has reserved is free after it.
        assert [(await client.post("/sample/fake/infer", json=body)).status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("body", [b"[" * 500, b"[1,", b"[NaN]", b"[%s]" % (b"1" * 5000), b"[%s1]" % (b"1," * 100_000)])
async def test_json_that_is_malformed_or_expensive_is_refused(application: Callable[..., FastAPI], body: bytes) -> None:
    async with _client(application()) as client:
        assert _why(await client.post("/sample/fake/infer", content=body)) == (400, "invalid-input")


async def test_refusals_have_the_form_of_the_protocol(application: Callable[..., FastAPI]) -> None:
    full: dict[str, Any] = {"predict": _overloaded}
    async with _client(application(full, max_request_bytes=1000, max_image_bytes=900)) as client:
        post = client.post
        assert _why(await post("/sample/nobody/infer", content=b"x")) == (404, "unknown-model")
        assert _why(await post("/sample/fake@nothing/infer", content=b"x")) == (404, "unknown-model")
        assert _why(await post("/sample/fake/infer?version=7", content=b"x")) == (404, "unknown-version")
        assert _why(await post("/sample/fake/infer", content=bytes(2000))) == (413, "body-too-large")
        assert _why(await post("/sample/fake/infer", content=bytes(950))) == (413, "image-too-large")
        compressed = {"Content-Encoding": "gzip"}
        answer = await post("/sample/fake/infer", content=b"x", headers=compressed)
        assert _why(answer) == (415, "unsupported-content-encoding")
        answer = await post("/sample/fake/infer", content=b"x", headers={"If-Match": "another"})
        assert _why(answer) == (412, "fingerprint-mismatch")
        answer = await post("/sample/fake/infer", content=b"x")
        assert _why(answer) == (429, "overloaded")
        assert answer.headers["retry-after"] == "3"
    async with _client(application({"ready": False})) as client:
        assert _why(await client.post("/sample/fake/infer", content=b"x")) == (503, "draining")


async def _overloaded(model: str | None, request: InferenceRequest) -> Answer:
    del model, request
    raise OverloadedError(1, 3)


async def test_unknown_paths_wrong_methods_and_failures_have_the_form_of_the_protocol(
    application: Callable[..., FastAPI],
) -> None:
    async with _client(application()) as client:
        assert _why(await client.get("/sample/elsewhere")) == (404, "not-found")
        wrong = await client.get("/sample/fake/infer")
        failed = await client.get("/sample/fail")

    assert _why(wrong) == (405, "method-not-allowed")
    assert wrong.headers["allow"] == "POST"
    assert _why(failed) == (500, "internal-error")
    assert "secret" not in failed.text


async def test_rights_are_checked_before_the_body_is_read(application: Callable[..., FastAPI]) -> None:
    headers = {"Authorization": "Bearer key-of-an-inferrer"}
    async with _client(application(**_KEYS)) as client:
        refused = await client.post("/sample/fake/infer", content=b"x")
        allowed = await client.post("/sample/fake/infer", content=b"x", headers=headers)
        without_right = await client.post("/sample/load", headers=headers)

    assert _why(refused) == (401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert allowed.status_code == 200
    assert _why(without_right) == (403, "forbidden")


async def test_models_that_are_fixed_cannot_be_changed(application: Callable[..., FastAPI]) -> None:
    app = application()
    async with _client(app) as client:
        assert (await client.post("/sample/load")).status_code == 200
        app.state.parts.fixed_models = "deploy again"
        refused = await client.post("/sample/load")

    assert _why(refused) == (403, "forbidden")
    assert refused.json()["is"] == "deploy again"
