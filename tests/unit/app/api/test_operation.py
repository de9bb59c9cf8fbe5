"""Probes, metrics and descriptions of models, and the start and stop of the application."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from time import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from app.main import create_app
from app.settings import Settings
from models.images.formats import FORMATS
from models.interface.errors import WarmUpError
from models.interface.telemetry import Telemetry

if TYPE_CHECKING:
    from tests.unit.conftest import FakeRuntime

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


async def test_an_application_is_ready_while_its_runtime_is(serve: Serve) -> None:
    async with serve() as client:
        ready = await client.get("/readyz")
    async with serve({"ready": False}) as client:
        draining = await client.get("/readyz")

    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    assert draining.status_code == 503
    assert draining.json()["type"] == "urn:gradless:problem:not-ready"


async def test_an_application_is_alive_even_if_it_is_not_ready(serve: Serve) -> None:
    async with serve({"ready": False}) as client:
        response = await client.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "alive"})


async def test_models_are_listed_default_first_and_described_by_name(serve: Serve) -> None:
    async with serve({"names": ("b", "a")}) as client:
        listed = (await client.get("/v1/models")).json()["models"]
        described = (await client.get("/v1/models/a")).json()

    assert [model["name"] for model in listed] == ["b", "a"]
    assert described == listed[1]
    assert described["feature_dimensions"] == 3
    assert "load_seconds" not in described


async def test_the_list_of_models_has_the_limits_of_requests_and_the_image_formats(serve: Serve) -> None:
    async with serve(max_images_per_request=7) as client:
        limits = (await client.get("/v1/models")).json()["limits"]

    assert limits["images"] == 7
    assert limits["image_formats"] == list(FORMATS)


async def test_models_are_also_listed_as_openais_api_lists_them(serve: Serve) -> None:
    started_at = time()
    async with serve({"names": ("b", "a")}) as client:
        listed = (await client.get("/v1/models")).json()
        described = (await client.get("/v1/models/a")).json()

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["b", "a"]
    created = described["created"]
    assert started_at - 1 <= created <= time()
    assert listed["data"][1] == {"id": "a", "object": "model", "created": created, "owned_by": "gradless"}
    assert described.items() >= listed["data"][1].items()


async def test_a_model_name_with_a_slash_is_described(serve: Serve, clock_png: bytes) -> None:
    async with serve({"names": ("timm/a", "b")}) as client:
        described = await client.get("/v1/models/timm/a")
        unknown = await client.get("/v1/models/timm/b")
        answered = await client.post("/v1/classify?model=timm/a", content=clock_png)
        metrics = (await client.get("/metrics")).text

    assert described.json()["name"] == "timm/a"
    assert unknown.status_code == 404
    assert answered.status_code == 200
    assert 'route="/v1/models/{name}"' in metrics
    assert 'model="timm/a"' in metrics
    assert "timm/b" not in metrics


async def test_the_runtime_is_closed_within_the_drain_timeout(
    new_runtime: Callable[..., FakeRuntime],
) -> None:
    runtime = new_runtime()
    app = create_app(Settings(models=("fake",), drain_timeout_s=7), lambda _telemetry: runtime)

    async with app.router.lifespan_context(app):
        assert runtime.closed_within_s == []

    assert runtime.closed_within_s == [7]


async def test_the_metrics_show_what_the_runtime_reports(new_runtime: Callable[..., FakeRuntime]) -> None:
    started_with: list[Telemetry] = []

    def start(telemetry: Telemetry) -> FakeRuntime:
        started_with.append(telemetry)
        return new_runtime().started(telemetry)

    app = create_app(Settings(models=("fake",)), start)
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        started_with[0].image_cancelled("fake", "queue", 0.25)
        text = (await client.get("/metrics")).text

    assert 'gradless_cancelled_total{model="fake",stage="queue"} 1.0' in text
    assert 'gradless_saved_device_seconds_total{model="fake"} 0.25' in text


async def test_models_that_cannot_be_served_stop_the_start() -> None:
    def start(_telemetry: Telemetry) -> Any:
        raise WarmUpError("fake", "not finite")

    app = create_app(Settings(models=("fake",)), start)

    with pytest.raises(WarmUpError):
        async with app.router.lifespan_context(app):
            pytest.fail("it started")
    assert isinstance(app.state.parts.start_error, WarmUpError)
