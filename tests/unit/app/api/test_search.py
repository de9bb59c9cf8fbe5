"""POST /v1/search: features, then a lookup in the index; and its problem without an index."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.observability.tracing import Traces
from models.interface.errors import EmptyImageError
from models.interface.results import Answer, Prediction
from models.search.index import Manifest, Neighbour

pytestmark = pytest.mark.anyio

_MANIFEST = Manifest(
    model="fake",
    fingerprint="0123456789abcdef",
    dimensions=3,
    rows=7,
    thumbnails=1,
    exact=True,
    expansion=64,
    recall=1.0,
    digests={},
)
_JPEG = b"\xff\xd8\xff small"

Application = Callable[..., FastAPI]
Multipart = Callable[..., tuple[dict[str, str], bytes]]


class FakeIndex:
    """Return `k` neighbours; the first row is the first number of the vector."""

    def __init__(self, manifest: Manifest = _MANIFEST) -> None:
        self.manifest = manifest

    def search(self, vectors: NDArray[np.float32], k: int) -> list[list[Neighbour]]:
        return [
            [Neighbour(int(vector[0]) + place, f"{place}.jpg", 1 - place / 10, place == 0) for place in range(k)]
            for vector in vectors
        ]

    def thumbnail(self, row: int) -> bytes | None:
        return _JPEG if row == 3 else None


@asynccontextmanager
async def started(app: FastAPI, index: FakeIndex | None) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False, client=("127.0.0.1", 1))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        app.state.parts.search_index = index
        yield client


def problem_of(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["type"].removeprefix("urn:gradless:problem:")


async def test_each_image_has_its_neighbours_most_similar_first(application: Application) -> None:
    async with started(application(), FakeIndex()) as client:
        response = await client.post("/v1/search?k=2", content=b"image")

    assert response.json() == {
        "model": "fake",
        "fingerprint": "0123456789abcdef",
        "indexed": 7,
        "results": [
            {
                "neighbours": [
                    {"row": 3, "path": "0.jpg", "similarity": 1.0, "thumbnail": True},
                    {"row": 4, "path": "1.jpg", "similarity": 0.9, "thumbnail": False},
                ]
            }
        ],
    }
    stages = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert stages == ["read", "decode", "queue", "forward", "lookup", "total"]


async def test_a_lookup_is_reported_as_part_of_the_respond_stage(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gradless.requests")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with started(application(traces=Traces(provider)), FakeIndex()) as client:
        await client.post("/v1/search?k=2", content=b"image")

    [line] = [vars(record) for record in caplog.records if record.name == "gradless.requests"]
    assert 0 < line["lookup_ms"] < line["respond_ms"]
    [lookup, respond] = [span for span in exporter.get_finished_spans() if span.name in {"lookup", "respond"}]
    assert respond.start_time <= lookup.start_time < lookup.end_time < respond.end_time


async def test_an_invalid_image_among_others_has_a_problem_as_its_result(
    application: Application,
    prediction: Callable[..., Prediction],
    answer: Callable[..., Answer],
    multipart: Multipart,
) -> None:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(prediction(0, (1, 0, 0)), EmptyImageError(), prediction(0, (5, 0, 0)))

    headers, body = multipart(b"a", b"", b"c")
    async with started(application({"predict": predict}), FakeIndex()) as client:
        first, bad, last = (await client.post("/v1/search?k=1", content=body, headers=headers)).json()["results"]

    assert (first["neighbours"][0]["row"], last["neighbours"][0]["row"]) == (1, 5)
    assert bad["error"]["type"] == "urn:gradless:problem:empty-image"


@pytest.mark.parametrize("k", ["0", "101", "ten"])
async def test_the_number_of_neighbours_is_limited(application: Application, k: str) -> None:
    async with started(application(), FakeIndex()) as client:
        assert problem_of(await client.post(f"/v1/search?k={k}", content=b"image")) == (422, "invalid-parameter")


async def test_without_an_index_the_request_fails_before_its_body_is_read(
    application: Application, exchange: Callable[..., Any]
) -> None:
    async def receive() -> dict[str, Any]:
        pytest.fail("the body was read")

    app = application()
    async with started(app, None) as client:
        answered = await client.get("/v1/search/thumbnails/3")
        messages = await exchange(app, receive, "/v1/search")

    assert problem_of(answered) == (404, "no-search-index")
    assert messages[0]["status"] == 404
    assert b"GRADLESS_SEARCH_INDEX" in messages[1]["body"]


async def test_an_index_of_another_model_is_not_searched(application: Application) -> None:
    index = FakeIndex(replace(_MANIFEST, model="other", fingerprint="f" * 16))
    async with started(application(), index) as client:
        response = await client.post("/v1/search", content=b"image")
        described = (await client.get("/v1/models/fake")).json()

    assert problem_of(response) == (404, "no-search-index")
    assert "of other" in response.json()["detail"]
    assert described["search"] is None


async def test_vectors_of_a_version_loaded_during_the_request_are_not_searched(
    application: Application, answer: Callable[..., Answer]
) -> None:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer()._replace(fingerprint="f" * 16)

    async with started(application({"predict": predict}), FakeIndex()) as client:
        assert problem_of(await client.post("/v1/search", content=b"image")) == (404, "no-search-index")


async def test_a_thumbnail_is_a_jpeg_that_browsers_never_interpret_as_another_type(application: Application) -> None:
    async with started(application(), FakeIndex()) as client:
        found = await client.get("/v1/search/thumbnails/3")
        missing = await client.get("/v1/search/thumbnails/4")

    assert (found.content, found.headers["content-type"]) == (_JPEG, "image/jpeg")
    assert found.headers["x-content-type-options"] == "nosniff"
    assert problem_of(missing) == (404, "not-found")


@pytest.mark.parametrize("row", ["-1", "x", "../3", "%2e%2e%2f3", "9" * 5000])
async def test_a_thumbnail_is_found_only_by_its_row(application: Application, row: str) -> None:
    async with started(application(), FakeIndex()) as client:
        assert (await client.get(f"/v1/search/thumbnails/{row}")).status_code in {404, 405, 422}


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/search"), ("GET", "/v1/search/thumbnails/3")])
async def test_search_needs_a_key_with_the_right_inference(application: Application, method: str, path: str) -> None:
    async with started(
        application(api_keys="inference:0123456789abcdef,metrics:fedcba9876543210"), FakeIndex()
    ) as client:
        unknown = await client.request(method, path, content=b"image")
        other = await client.request(method, path, content=b"image", headers={"X-API-Key": "fedcba9876543210"})
        known = await client.request(method, path, content=b"image", headers={"X-API-Key": "0123456789abcdef"})

    assert [response.status_code for response in (unknown, other, known)] == [401, 403, 200]


async def test_the_list_of_models_shows_which_has_an_index(application: Application) -> None:
    async with started(application(), FakeIndex()) as client:
        described = (await client.get("/v1/models/fake")).json()["search"]

    assert described == {"rows": 7, "exact": True, "recall": 1.0, "thumbnails": 1}
