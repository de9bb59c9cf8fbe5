"""HEAD is answered like GET without the body; paths have no trailing slash, and nothing is redirected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

FILES = ["/", "/page/page.css", "/samples/clock.jpg", "/docs", "/docs/start.js", "/openapi.json"]


async def test_every_route_that_has_get_has_head_with_the_same_status_and_headers(serve: Serve) -> None:
    async with serve() as client:
        document = (await client.get("/openapi.json")).json()
        documented = [
            path.format(name="fake", row=0) for path, methods in document["paths"].items() if "get" in methods
        ]
        for path in [*documented, *FILES, "/nothing", "/v1/models/none"]:
            got, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            left_out = {"x-request-id", *([] if path != "/metrics" else ["content-length"])}
            assert {name: value for name, value in head.headers.items() if name not in left_out} == {
                name: value for name, value in got.headers.items() if name not in left_out
            }, path
    assert {"/metrics", "/healthz", "/readyz", "/v1/models", "/v1/models/fake"} <= set(documented)


async def test_without_get_head_is_a_405_that_names_the_allowed_methods(serve: Serve) -> None:
    async with serve() as client:
        head = await client.head("/v1/classify")
        wrong = [await client.put(path) for path in ("/healthz", "/v1/models/fake", "/openapi.json", "/docs")]
    assert (head.status_code, head.headers["allow"], head.content) == (405, "POST", b"")
    assert {answer.status_code for answer in wrong} == {405}
    assert [answer.headers["allow"] for answer in wrong] == [
        "GET, HEAD",
        "DELETE, GET, HEAD, POST",
        "GET, HEAD",
        "GET, HEAD",
    ]


async def test_a_head_request_is_counted_for_its_route(serve: Serve) -> None:
    async with serve() as client:
        await client.head("/v1/models")
        exposition = (await client.get("/metrics")).text
    assert 'gradless_requests_total{code="200",contract="native",method="HEAD",route="/v1/models"} 1.0' in exposition


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/healthz/"),
        ("GET", "/v1/models/"),
        ("POST", "/v1/classify/"),
        ("GET", "/docs/"),
        ("GET", "/metrics/"),
        ("POST", "/debug/grad-modes/"),
        ("HEAD", "/healthz/"),
    ],
)
async def test_a_path_with_a_trailing_slash_is_404_and_not_redirected(serve: Serve, method: str, path: str) -> None:
    async with serve({}, allowed_hosts=("*",)) as client:
        answer = await client.request(method, path, headers={"Host": "elsewhere.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers


async def test_the_404_of_a_trailing_slash_names_the_slash(serve: Serve) -> None:
    async with serve() as client:
        answer = await client.get("/healthz/")
    assert answer.json()["detail"] == "GET /healthz/: paths have no trailing slash"
