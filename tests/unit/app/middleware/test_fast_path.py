"""Requests with images are answered without the framework's way to their handlers, and all others go it."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

pytestmark = pytest.mark.anyio


@pytest.fixture
def passed_on(application: Callable[..., FastAPI]) -> tuple[FastAPI, list[str]]:
    """An application, and the paths of the requests that come as far as the framework's router."""
    app = application()
    routed: list[str] = []
    router = app.router.middleware_stack

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            routed.append(scope["path"])
        await router(scope, receive, send)

    app.router.middleware_stack = noting
    return app, routed


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/classify", []),
        ("POST", "/v1/features", []),
        ("GET", "/v1/classify", ["/v1/classify"]),
        ("POST", "/v1/nothing", ["/v1/nothing"]),
    ],
)
async def test_only_requests_with_images_take_the_short_cut(
    passed_on: tuple[FastAPI, list[str]], method: str, path: str, expected: list[str]
) -> None:
    app, routed = passed_on
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        await client.request(method, path, content=b"image")
    assert routed == expected
