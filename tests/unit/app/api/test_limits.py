"""Limits of size and time of a body: counted while it is received, refused without reading the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import FastAPI

from app.api.file_parts import PIECE_BYTES, FileParts
from models.interface import turns
from models.interface.errors import EmptyImageError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction

if TYPE_CHECKING:
    from tests.unit.conftest import Exchange

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]
Multipart = Callable[..., tuple[dict[str, str], bytes]]


@pytest.fixture
def received(answer: Callable[..., Answer]) -> tuple[list[list[bytes]], dict[str, Any]]:
    """The images of each request, and the runtime that records them."""
    noted: list[list[bytes]] = []

    async def predict(_model: str | None, request: InferenceRequest) -> Answer:
        noted.append(list(request.images))
        return answer()

    return noted, {"predict": predict}


async def _chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


def _slug(response: httpx2.Response) -> str:
    return str(response.json()["type"]).rpartition(":")[2]


async def test_a_raw_body_is_one_image_regardless_of_content_type(
    serve: Serve, received: tuple[list[list[bytes]], dict[str, Any]]
) -> None:
    noted, runtime = received
    async with serve(runtime) as client:
        for content_type in ("image/png", "application/x-www-form-urlencoded", "application/json", "no type at all"):
            headers = {"Content-Type": content_type}
            assert (await client.post("/v1/classify", content=b"a=b", headers=headers)).status_code == 200
        assert (await client.post("/v1/classify", content=_chunks(2, 3))).status_code == 200

    assert noted == [[b"a=b"]] * 4 + [[b"xxxxx"]]


async def test_the_files_of_a_multipart_body_are_images_in_order(
    serve: Serve, received: tuple[list[list[bytes]], dict[str, Any]]
) -> None:
    noted, runtime = received
    async with serve(runtime) as client:
        files = [("images", ("a", b"1")), ("other", ("b", b"2")), ("images", ("c", b"3"))]
        assert (await client.post("/v1/features", files=files, data={"note": "x"})).status_code == 200

    assert noted == [[b"1", b"2", b"3"]]


@pytest.mark.parametrize("length", [b"101", b"9" * 5000])
async def test_a_body_with_a_content_length_above_the_limit_is_refused_unread(
    application: Callable[..., FastAPI], exchange: Exchange, length: bytes
) -> None:
    async def receive() -> dict[str, Any]:
        pytest.fail("the body was read")

    app = application(max_request_bytes=100)
    async with app.router.lifespan_context(app):
        sent = await exchange(app, receive, headers=[(b"content-length", length)])

    assert sent[0]["status"] == 413
    assert b"body-too-large" in sent[1]["body"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
async def test_a_body_without_content_length_is_counted_as_it_is_received(serve: Serve, path: str) -> None:
    async with serve(max_request_bytes=100) as client:
        fitting = await client.post(path, content=_chunks(60, 40))
        too_large = await client.post(path, content=_chunks(60, 40, 1))

    assert fitting.status_code == 200
    assert (too_large.status_code, _slug(too_large)) == (413, "body-too-large")
    assert too_large.headers["connection"] == "close"


async def test_a_body_longer_than_its_content_length_is_counted(
    application: Callable[..., FastAPI], exchange: Exchange
) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    app = application(max_request_bytes=100)
    async with app.router.lifespan_context(app):
        sent = await exchange(app, receive, headers=[(b"content-length", b"60")])

    assert sent[0]["status"] == 413


async def test_an_image_of_exactly_the_limit_passes_and_one_byte_more_does_not(
    serve: Serve, multipart: Multipart
) -> None:
    statuses = []
    async with serve(max_image_bytes=50) as client:
        for size in (50, 51):
            headers, body = multipart(b"x" * size)
            for content, options in ((b"x" * size, {}), (body, {"headers": headers})):
                response = await client.post("/v1/classify", content=content, **options)
                statuses.append((response.status_code, response.status_code == 200 or _slug(response)))

    assert statuses == [(200, True)] * 2 + [(413, "image-too-large")] * 2


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
async def test_an_image_that_is_too_large_among_several_has_its_error_as_its_result(
    serve: Serve, multipart: Multipart, answer: Callable[..., Answer], prediction: Callable[..., Prediction], path: str
) -> None:
    received: list[bytes] = []

    async def predict(_model: str | None, request: InferenceRequest) -> Answer:
        received.extend(request.images)
        return answer(*[EmptyImageError() if image == b"bad" else prediction() for image in request.images])

    headers, body = multipart(b"x" * 60, b"good", b"y" * 51, b"bad", b"good")
    async with serve({"predict": predict}, max_image_bytes=50) as client:
        response = await client.post(path, content=body, headers=headers)
        exposition = (await client.get("/metrics")).text

    assert response.status_code == 200
    errors = [result.get("error", {}) for result in response.json()["results"]]
    assert [error.get("status") for error in errors] == [413, None, 413, 422, None]
    assert errors[0]["type"] == "urn:gradless:problem:image-too-large"
    assert errors[0]["detail"] == "The image a is larger than 50 bytes: it has 6e-05 MB."
    assert received == [b"good", b"bad", b"good"]
    task = path.rpartition("/")[2]
    assert f'gradless_images_total{{model="fake",outcome="bad_image",task="{task}"}} 2.0' in exposition
    assert 'gradless_rejected_total{reason="too_large"} 2.0' in exposition


async def test_if_every_image_is_too_large_each_has_its_error_and_the_runtime_is_not_called(
    serve: Serve, multipart: Multipart
) -> None:
    async def predict(*_: object, **__: object) -> Answer:
        pytest.fail("there is nothing to answer")

    headers, body = multipart(b"x" * 60, b"y" * 51)
    async with serve({"predict": predict}, max_image_bytes=50) as client:
        response = await client.post("/v1/classify", content=body, headers=headers)
        lens = await client.post("/debug/grad-modes", content=multipart(b"x" * 60)[1], headers=headers)

    assert [result["error"]["status"] for result in response.json()["results"]] == [413, 413]
    assert response.json()["model"] == "fake"
    assert (lens.status_code, _slug(lens)) == (413, "image-too-large")


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features", "/debug/grad-modes", "/v1/models/fake"])
@pytest.mark.parametrize("codings", ["gzip", "deflate", "x-made-up", "identity, GZIP"])
async def test_a_compressed_body_is_refused_unread_with_its_content_encoding(
    application: Callable[..., FastAPI], exchange: Exchange, path: str, codings: str
) -> None:
    async def receive() -> dict[str, Any]:
        pytest.fail("it is not read")

    app = application()
    async with app.router.lifespan_context(app):
        [start, body] = await exchange(app, receive, path, [(b"content-encoding", codings.encode())])

    assert start["status"] == 415
    assert (b"accept-encoding", b"identity") in start["headers"]
    assert b"urn:gradless:problem:unsupported-content-encoding" in body["body"]
    assert f"Content-Encoding: {codings}".encode() in body["body"]


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
async def test_a_body_with_the_coding_identity_is_read(serve: Serve, coding: str) -> None:
    async with serve() as client:
        assert (
            await client.post("/v1/classify", content=b"image", headers={"Content-Encoding": coding})
        ).status_code == 200


async def test_one_image_too_many_is_refused(serve: Serve, multipart: Multipart) -> None:
    async with serve(max_images_per_request=2) as client:
        two, three = [
            await client.post("/v1/classify", content=body, headers=headers)
            for headers, body in (multipart(b"1", b"2"), multipart(b"1", b"2", b"3"))
        ]

    assert two.status_code == 200
    assert (three.status_code, _slug(three)) == (413, "too-many-images")


@pytest.mark.parametrize(
    ("content_type", "body", "status", "slug"),
    [
        ("multipart/form-data; boundary=cut", b"--cut--\r\n", 422, "no-images"),
        ("multipart/form-data; boundary=cut", b"--cut\r\n", 400, "malformed-multipart"),
        ("multipart/form-data; boundary=cut", b"", 400, "malformed-multipart"),
        ("multipart/form-data; boundary=cut", b"GIF89a", 400, "malformed-multipart"),
        ("multipart/form-data", b"--cut--\r\n", 400, "malformed-multipart"),
    ],
)
async def test_a_multipart_body_that_is_empty_or_malformed_is_refused(
    serve: Serve, content_type: str, body: bytes, status: int, slug: str
) -> None:
    async with serve() as client:
        response = await client.post("/v1/classify", content=body, headers={"Content-Type": content_type})

    assert (response.status_code, _slug(response)) == (status, slug)


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=cut"])
async def test_a_body_that_never_arrives_is_answered_with_408(serve: Serve, content_type: str) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b"--cut\r\n"
        await asyncio.Event().wait()

    async with serve(read_timeout_s=0.05) as client:
        response = await client.post("/v1/classify", content=stalling(), headers={"Content-Type": content_type})

    assert (response.status_code, _slug(response)) == (408, "slow-body")
    assert response.headers["connection"] == "close"


async def test_an_answer_keeps_the_connection_open(serve: Serve) -> None:
    async with serve() as client:
        answered = await client.post("/v1/classify", content=b"image")
        refused = await client.post("/v1/classify?top_k=0", content=b"image")

    assert "connection" not in answered.headers
    assert "connection" not in refused.headers


async def test_all_bodies_together_have_a_limit_and_are_released_when_they_are_answered(
    application: Callable[..., FastAPI], exchange: Exchange, answer: Callable[..., Answer]
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def predict(*_arguments: object, **_options: object) -> Answer:
        began.set()
        await go_on.wait()
        return answer()

    def sender(size: int) -> Callable[[], Any]:
        async def receive() -> dict[str, Any]:
            if sent:
                await asyncio.Event().wait()
            sent.append(size)
            return {"type": "http.request", "body": b"x" * size, "more_body": False}

        sent: list[int] = []
        return receive

    limits = {"max_held_bytes": 1000, "max_request_bytes": 1000, "max_image_bytes": 1000}
    app = application({"predict": predict}, **limits)
    async with app.router.lifespan_context(app):
        first = asyncio.create_task(exchange(app, sender(600)))
        await began.wait()
        refused = await exchange(app, sender(401))
        second = asyncio.create_task(exchange(app, sender(400)))
        go_on.set()
        answered = [await first, await second, await exchange(app, sender(1000))]

    assert refused[0]["status"] == 429
    assert dict(refused[0]["headers"])[b"retry-after"] == b"1"
    assert b"too-much-at-once" in refused[1]["body"]
    assert [messages[0]["status"] for messages in answered] == [200, 200, 200]


async def test_other_requests_have_turns_while_a_form_is_parsed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_TURN_S", -1.0)
    fed: list[int] = []
    happened: list[str] = []
    feed = FileParts.feed

    def recorded(parts: FileParts, piece: bytes) -> None:
        fed.append(len(piece))
        happened.append("piece")
        asyncio.get_running_loop().call_soon(happened.append, "other")
        feed(parts, piece)

    monkeypatch.setattr(FileParts, "feed", recorded)
    async with serve() as client:
        answer = await client.post("/v1/classify", files={"image": ("a.jpg", b"\xff" * 500_000)})

    assert answer.status_code == 200
    assert max(fed) == PIECE_BYTES
    assert happened == ["piece", "other"] * len(fed)
