"""Hosts that requests may name, and origins whose pages may send requests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest

from app.http.hosts import allowed_hosts

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"])
async def test_on_loopback_requests_for_loopback_names_are_answered(serve: Serve, host: str) -> None:
    async with serve() as client:
        assert (await client.get("/v1/models", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics", "/nothing"])
@pytest.mark.parametrize("host", ["attacker.example", "localhost.attacker.example", "127.0.0.1.attacker.example", ""])
async def test_on_loopback_requests_for_other_names_are_refused(serve: Serve, host: str, path: str) -> None:
    async with serve() as client:
        answer = await client.get(path, headers={"Host": host})

    assert answer.status_code == 421
    assert answer.json()["type"] == "urn:gradless:problem:unknown-host"
    assert answer.headers["x-request-id"]


async def test_requests_for_configured_names_and_subdomains_are_answered(serve: Serve) -> None:
    names = ("a.example", "*.b.example")
    async with serve({}, allowed_hosts=names) as client:
        statuses = {
            host: (await client.get("/v1/models", headers={"Host": host})).status_code
            for host in ("a.example", "x.b.example", "x.y.b.example:443", "b.example", "xb.example", "localhost")
        }

    assert statuses == {
        "a.example": 200,
        "x.b.example": 200,
        "x.y.b.example:443": 200,
        "b.example": 421,
        "xb.example": 421,
        "localhost": 421,
    }


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_are_answered_for_any_host(serve: Serve, path: str) -> None:
    async with serve({}, allowed_hosts=("a.example",)) as client:
        by_address = {"Host": "10.0.3.7:8000"}
        assert (await client.get(path, headers=by_address)).status_code == 200
        # Scrapers use an allowed host.
        assert (await client.get("/metrics", headers=by_address)).status_code == 421
        assert (await client.get(f"{path}/", headers=by_address)).status_code == 421


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7"])  # noqa: S104 - nothing listens there
def test_on_other_addresses_any_name_is_allowed_unless_some_are_configured(address: str) -> None:
    assert allowed_hosts((), address) == ("*",)
    assert allowed_hosts(("a.example",), address) == ("a.example",)


async def test_pages_of_other_origins_can_read_responses_only_if_configured(serve: Serve) -> None:
    origin = {"Origin": "https://shop.example"}
    preflight = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with serve() as client:
        closed = await client.post("/v1/classify", content=b"image", headers=origin)
        refused = await client.options("/v1/classify", headers=preflight)
    async with serve({}, cors_origins=("https://shop.example",)) as client:
        opened = await client.post("/v1/classify", content=b"image", headers=origin)
        allowed = await client.options("/v1/classify", headers=preflight)
        other = await client.post("/v1/classify", content=b"image", headers={"Origin": "https://other.example"})

    exposed = opened.headers["access-control-expose-headers"].split(", ")
    assert {"X-Request-ID", "Retry-After", "X-Gradless-Fingerprint", "X-Gradless-Shape"} <= set(exposed)
    assert "DELETE" in allowed.headers["access-control-allow-methods"]
    assert "access-control-allow-origin" not in closed.headers
    assert refused.status_code == 405
    assert opened.headers["access-control-allow-origin"] == "https://shop.example"
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics", "/nothing"])
async def test_browsers_never_guess_the_type_of_a_response(serve: Serve, path: str) -> None:
    async with serve() as client:
        assert (await client.get(path)).headers["x-content-type-options"] == "nosniff"
