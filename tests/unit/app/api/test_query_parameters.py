"""Every documented route accepts its own query parameters, each once, and suggests one for a misspelt name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


async def test_every_documented_route_refuses_unknown_parameters(serve: Serve) -> None:
    async with serve() as client:
        document = (await client.get("/openapi.json")).json()
        operations = [(method, path) for path, methods in document["paths"].items() for method in methods]
        for method, path in operations:
            url = path.format(name="fake", row=0) + "?unheard-of=1"
            answer = await client.request(method, url)
            assert answer.status_code == 422, (method, path)
    assert len(operations) > 10


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("topk=3", "topk: unknown parameter; did you mean top_k?"),
        ("Model=fake", "Model: unknown parameter; did you mean model?"),
        ("zebra", "zebra: unknown parameter; this route accepts top_k, model"),
        ("=1", ": unknown parameter; this route accepts top_k, model"),
        ("model=fake&model=fake", "model: given 2 times; it accepts one value"),
        ("top_k=1&top_k=2&top_k=3", "top_k: given 3 times; it accepts one value"),
        (
            "topk=3&model=a&model=b",
            "topk: unknown parameter; did you mean top_k?; model: given 2 times; it accepts one value",
        ),
    ],
)
async def test_an_unknown_or_repeated_parameter_is_named(serve: Serve, query: str, detail: str) -> None:
    async with serve() as client:
        answer = await client.post(f"/v1/classify?{query}", content=b"image")
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:gradless:problem:invalid-parameter")
    assert answer.json()["detail"] == detail


async def test_a_route_without_parameters_states_that_it_accepts_none(serve: Serve) -> None:
    async with serve() as client:
        answer = await client.get("/v1/models?model=fake")
    assert answer.json()["detail"] == "model: unknown parameter; this route accepts none"


async def test_only_the_first_of_many_wrong_parameters_are_named(serve: Serve) -> None:
    query = "&".join(f"{'x' * 100}{number}" for number in range(100))
    async with serve() as client:
        answer = await client.post(f"/v1/classify?{query}", content=b"image")
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) < 1000


async def test_a_query_of_many_parameters_is_refused_before_it_is_parsed(serve: Serve) -> None:
    async with serve() as client:
        answer = await client.post(f"/v1/classify?{'top_k=1&' * 4000}", content=b"image")
    assert (answer.status_code, answer.json()["detail"]) == (422, "query: it has more than 64 parameters")


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/hf/fake", "image/png"),
        ("/invocations", "image/png"),
        ("/invocations", "application/vnd.sagemaker-triton.binary+json;json-header-size=9"),
    ],
)
async def test_other_protocols_refuse_it_as_well(serve: Serve, path: str, content_type: str) -> None:
    async with serve() as client:
        url, headers = f"{path}?{'model=fake&' * 2000}", {"Content-Type": content_type}
        answer = await client.post(url, content=b"image", headers=headers)
    assert answer.status_code == 400
    assert "The query has more than 64 parameters." in answer.text


async def test_a_list_parameter_may_be_repeated(serve: Serve) -> None:
    async with serve() as client:
        answer = await client.post("/debug/grad-modes?arms=grad&arms=no_grad&sweep=1&sweep=2,4&batch_size=2")
        twice = await client.post("/debug/grad-modes?batch_size=2&batch_size=3")
    assert answer.status_code == 200
    assert [arm["arm"] for arm in answer.json()["arms"]] == ["grad", "no_grad"]
    assert twice.status_code == 422


@pytest.mark.parametrize("path", ["/", "/page/page.css", "/samples/clock.jpg", "/docs"])
async def test_files_are_served_with_any_query(serve: Serve, path: str) -> None:
    async with serve() as client:
        assert (await client.get(f"{path}?v=2")).status_code == 200
