"""Each request has an id, its response has a Server-Timing header, and it is counted once under a bounded label."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from models.interface.errors import DrainingError
from models.interface.results import Answer, Prediction
from models.interface.telemetry import StageSeconds

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


async def _counted(client: httpx2.AsyncClient, name: str = "gradless_requests_total") -> dict[tuple[str, ...], float]:
    """Return the nonzero values of a metric by label values but the protocol, in alphabetical order of their names."""
    text = (await client.get("/metrics")).text
    return {
        tuple(value for label, value in sorted(sample.labels.items()) if label != "contract"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.value
    }


async def _fail(*_arguments: object, **_options: object) -> Any:
    raise RuntimeError("unforeseen")


@pytest.mark.parametrize("offered", ["a", "0f3a-9_b.c", "x" * 64])
async def test_a_valid_request_id_of_the_client_is_returned(serve: Serve, offered: str) -> None:
    async with serve() as client:
        response = await client.get("/healthz", headers={"X-Request-ID": offered})

    assert response.headers["x-request-id"] == offered


@pytest.mark.parametrize("offered", ["", "x" * 65, "a b", "a\tb", "<script>", "é", "a;b"])
async def test_an_invalid_request_id_is_replaced(serve: Serve, offered: str) -> None:
    async with serve() as client:
        response = await client.get("/nothing", headers={"X-Request-ID": offered.encode("latin-1")})

    assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_requests_without_an_id_get_different_ids(serve: Serve) -> None:
    async with serve() as client:
        ids = {(await client.get("/healthz")).headers["x-request-id"] for _ in range(5)}

    assert len(ids) == 5


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
async def test_server_timing_has_the_longest_time_of_any_image_in_each_stage(
    serve: Serve, prediction: Callable[..., Prediction], answer: Callable[..., Answer], path: str
) -> None:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(
            prediction(seconds=StageSeconds(decode=0.001, queue=0.5, forward=0.25)),
            prediction(seconds=StageSeconds(decode=0.125, queue=0.002, forward=0.25)),
        )

    async with serve({"predict": predict}) as client:
        timing = (await client.post(path, content=b"image")).headers["server-timing"]

    assert re.fullmatch(
        r"read;dur=[\d.]+, decode;dur=125\.000, queue;dur=500\.000, forward;dur=250\.000, total;dur=[\d.]+", timing
    )


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
@pytest.mark.parametrize("query", ["", "?model=other", "?top_k=0&encoding=x"])
@pytest.mark.parametrize("error", [DrainingError(), RuntimeError("unforeseen")], ids=["expected", "unexpected"])
async def test_errors_of_inference_endpoints_have_server_timing(
    serve: Serve, path: str, query: str, error: Exception
) -> None:
    async def fail(*_arguments: object, **_options: object) -> Answer:
        raise error

    async with serve({"predict": fail}) as client:
        response = await client.post(path + query, content=b"image")

    assert response.status_code >= 400
    assert re.search(r"total;dur=[\d.]+$", response.headers["server-timing"])


async def test_other_endpoints_have_no_server_timing(serve: Serve) -> None:
    async with serve() as client:
        for path in ("/healthz", "/v1/models", "/metrics", "/nothing"):
            assert "server-timing" not in (await client.get(path)).headers


async def test_each_request_is_counted_once_under_the_template_of_its_route(serve: Serve) -> None:
    async with serve() as client:
        await client.post("/v1/classify?top_k=3", content=b"image")
        await client.post("/v1/classify?model=other", content=b"image")
        await client.get("/v1/models/fake")
        await client.get("/v1/models/other")
        await client.get("/v1/models/another")
        await client.get("/v1/classify")
        counted = await _counted(client)
        again = await _counted(client)

    assert counted == {
        ("200", "POST", "/v1/classify"): 1,
        ("404", "POST", "/v1/classify"): 1,
        ("405", "GET", "/v1/classify"): 1,
        ("200", "GET", "/v1/models/{name}"): 1,
        ("404", "GET", "/v1/models/{name}"): 2,
    }
    assert again == {**counted, ("200", "GET", "/metrics"): 1}


async def test_unknown_paths_share_one_label(serve: Serve) -> None:
    async with serve() as client:
        for path in ("/a", "/b/c", "/v1/model/x/y", "/metrics/"):
            await client.request("BREW", path)
        counted = await _counted(client)

    assert {route for _, _, route in counted} == {"other"}
    assert {method for _, method, _ in counted} == {"other"}
    assert sum(counted.values()) == 4


async def test_an_unexpected_failure_is_counted_as_a_500(serve: Serve) -> None:
    async with serve({"predict": _fail}) as client:
        await client.post("/v1/classify", content=b"image")
        counted = await _counted(client)
        durations = await _counted(client, "gradless_request_duration_seconds_count")

    assert counted == {("500", "POST", "/v1/classify"): 1}
    assert durations["5xx", "POST", "/v1/classify"] == 1


async def test_read_and_respond_are_timed_once_per_answered_request(serve: Serve) -> None:
    async with serve() as client:
        await client.post("/v1/classify", content=b"image")
        await client.post("/v1/classify?model=other", content=b"image")
        stages = await _counted(client, "gradless_stage_duration_seconds_count")

    assert stages["", "fake", "read"] == 1
    assert stages["", "fake", "respond"] == 1


async def test_refusals_are_counted_by_reason(serve: Serve) -> None:
    async def refuse(*_arguments: object, **_options: object) -> Answer:
        raise DrainingError

    async with serve({"predict": refuse}, max_image_bytes=10) as client:
        await client.post("/v1/classify", content=b"image")
        await client.post("/v1/classify", content=b"x" * 11)
        refused = await _counted(client, "gradless_rejected_total")

    assert refused == {("draining",): 1, ("too_large",): 1}


async def test_the_exemplar_of_a_bucket_is_the_request_id(serve: Serve) -> None:
    async with serve() as client:
        await client.post("/v1/classify", content=b"image", headers={"X-Request-ID": "mine"})
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        text = (await client.get("/metrics", headers=accept)).text
    exemplars = [
        sample.exemplar.labels
        for family in openmetrics_families(text)
        for sample in family.samples
        if sample.name == "gradless_request_duration_seconds_bucket" and sample.exemplar
    ]

    assert exemplars == [{"request_id": "mine"}]


async def test_every_documented_outcome_of_a_request_has_a_series_before_its_first_request(
    application: Callable[..., FastAPI],
) -> None:
    with_bodies = {f"/v1/{name}" for name in ("classify", "features", "predict", "search", "models/{name}")}
    with_bodies.add("/debug/grad-modes")

    def is_refused_before_routing(status: str, described: str, method: str, path: str) -> bool:
        """Return True if requests with this outcome count as requests without a route."""
        slow_head = status == "408" and not (method == "post" and path in with_bodies)
        return status in {"421", "431"} or (status == "400" and "multipart" not in described) or slow_head

    app = application()
    documented = {
        (status, method.upper(), path)
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
        for status, answer in operation["responses"].items()
        if not is_refused_before_routing(status, answer["description"], method, path)
    }
    text, _ = app.state.parts.metrics.exposition("")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}

    def outcomes(name: str) -> set[tuple[str, str, str]]:
        samples = [sample for sample in families[name].samples if not sample.name.endswith(("_bucket", "_sum"))]
        assert not any(sample.value for sample in samples)
        return {(sample.labels["code"], sample.labels["method"], sample.labels["route"]) for sample in samples}

    disconnected = {outcome for outcome in outcomes("gradless_requests") if outcome[0] == "499"}
    without_route = {(status, method, "other") for status in ("404", "421") for method in ("GET", "POST")}
    without_route |= {(status, "other", "other") for status in ("400", "408", "431")} | {("200", "GET", "other")}
    documented |= without_route
    assert outcomes("gradless_requests") == documented | disconnected
    assert {route for _, _, route in disconnected} == with_bodies
    by_class = {(f"{status[0]}xx", method, path) for status, method, path in documented}
    assert outcomes("gradless_request_duration_seconds") == by_class
