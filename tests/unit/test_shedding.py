"""In a full house a request is refused at its headers; what needs a closer look passes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import FastAPI

from models.errors import OverloadedError

if TYPE_CHECKING:
    from tests.unit.conftest import Exchange

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

FULL = {"overload": OverloadedError(8, 2.5)}
KEY = "a-key-of-sixteen-letters-or-more"


async def nothing_comes() -> dict[str, Any]:
    raise AssertionError("the body was asked for")


async def refused_at_headers(
    application: Callable[..., FastAPI], exchange: Exchange, headers: Sequence[tuple[bytes, bytes]] = ()
) -> dict[bytes, bytes]:
    app = application(FULL)
    async with app.router.lifespan_context(app):
        start, body = await exchange(app, nothing_comes, headers=headers)
    assert start["status"] == 429
    assert b"urn:gradless:problem:overloaded" in body["body"]
    return dict(start["headers"])


async def test_the_body_of_a_refused_image_is_not_waited_for(
    application: Callable[..., FastAPI], exchange: Exchange
) -> None:
    headers = await refused_at_headers(application, exchange)
    assert headers[b"retry-after"] == b"3"
    assert len(headers[b"x-request-id"]) == 16


@pytest.mark.parametrize(("size", "ends"), [(b"99999", False), (b"100000", True)])
async def test_a_connection_lives_on_unless_much_would_have_to_be_read_for_it(
    application: Callable[..., FastAPI], exchange: Exchange, size: bytes, *, ends: bool
) -> None:
    headers = await refused_at_headers(application, exchange, [(b"content-length", size)])
    assert (headers.get(b"connection") == b"close") == ends


async def test_a_refusal_is_counted_and_told_like_any_other(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(FULL) as client:
        with caplog.at_level("INFO", "gradless.requests"):
            await client.post("/v1/features", content=b"image")
        exposition = (await client.get("/metrics")).text
    [line] = [record.__dict__ for record in caplog.records if record.name == "gradless.requests"]
    assert (line["status"], line["problem"], line["model"], line["task"]) == (429, "overloaded", "fake", "features")
    assert 'gradless_rejected_total{reason="queue_full"} 1.0' in exposition
    assert 'gradless_requests_total{code="429",method="POST",route="/v1/features"} 1.0' in exposition


@pytest.mark.parametrize("query", ["?model=fake", "?top_k=2&model=fake", "?top_k=2", "?encoding=base64"])
async def test_whatever_else_is_asked_of_the_model_it_is_refused(serve: Serve, query: str) -> None:
    async with serve(FULL) as client:
        assert (await client.post(f"/v1/classify{query}", content=b"image")).status_code == 429


async def test_a_model_that_is_not_full_answers_beside_one_that_is(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve({"names": ("full", "free"), **FULL}) as client:
        transport = client._transport  # noqa: SLF001 - the application is behind it, and nowhere else
        assert isinstance(transport, httpx2.ASGITransport)
        runtime = transport.app.state.parts.runtime  # type: ignore[attr-defined]
        monkeypatch.setattr(runtime, "names_overloaded", {"full"})
        statuses = [
            (await client.post("/v1/classify", params=params, content=b"image")).status_code
            for params in ({}, {"model": "full"}, {"model": "free"})
        ]
    assert statuses == [429, 429, 200]


async def test_images_of_a_multipart_body_are_counted_before_they_are_refused(
    serve: Serve, multipart: Callable[..., tuple[dict[str, str], bytes]]
) -> None:
    headers, body = multipart(b"one", b"two")
    async with serve(FULL) as client:
        # By the runtime, that is: this one takes them.
        assert (await client.post("/v1/classify", content=body, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/classify", {}, 401),
        ("/v1/classify", {"X-API-Key": "none-that-anybody-knows"}, 401),
        ("/v1/classify", {"X-API-Key": KEY, "If-Match": "another"}, 412),
        ("/v1/classify?model=another", {"X-API-Key": KEY}, 404),
        ("/v1/classify", {"X-API-Key": KEY}, 429),
    ],
)
async def test_who_would_be_refused_for_another_reason_hears_that_one(
    serve: Serve, path: str, headers: dict[str, str], status: int
) -> None:
    async with serve(FULL, api_keys=KEY) as client:
        assert (await client.post(path, content=b"image", headers=headers)).status_code == status


async def test_a_service_that_stops_says_that_it_does(serve: Serve) -> None:
    async with serve({**FULL, "ready": False}) as client:
        assert (await client.post("/v1/classify", content=b"image")).status_code == 503
