"""A client that writes its whole body before it reads still receives the refusal: the connection is not reset."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

KEY = "a-key-of-sixteen-letters-or-more"
MANY_TRIES = 15
# More than the kernel buffers on both sides, so that the client is still writing when it is refused.
BODY = bytes(8 * 2**20)

REFUSALS = [
    ("POST", "/v1/classify", {}, 401),
    ("POST", "/v1/classify?model=none", {"X-API-Key": KEY}, 404),
    ("POST", "/nowhere", {}, 404),
    ("PUT", "/v1/classify", {}, 405),
    ("POST", "/v1/classify", {"X-API-Key": KEY, "If-Match": "another"}, 412),
    ("POST", "/v1/classify", {"X-API-Key": KEY}, 413),
    ("POST", "/v1/models/null", {}, 401),
    ("POST", "/v1/classify?top_k=0", {"X-API-Key": KEY}, 422),
    ("POST", "/v1/classify", {"Host": "elsewhere.example"}, 421),
    ("POST", "/v1/classify", {"Host": "user@localhost"}, 400),
    ("POST", "/v1/classify", {"X-Long": "x" * 33_000}, 431),
]


@pytest.fixture(scope="module")
def strict_server(warm_command: Any, serving: Callable[..., Any]) -> Any:
    """A server whose settings allow every kind of refusal."""
    with ExitStack() as running:
        yield running.enter_context(
            serving(
                warm_command.start,
                GRADLESS_MODELS="null",
                GRADLESS_MAX_REQUEST_BYTES=str(2**20),
                GRADLESS_MAX_IMAGE_BYTES=str(2**19),
                GRADLESS_API_KEYS=KEY,
            )
        )


def refused_by_http_client(server: Any, method: str, target: str, headers: Mapping[str, str]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    connection.request(method, target, BODY, dict(headers))
    response = connection.getresponse()
    refusal = response.status, json.loads(response.read())
    connection.close()
    return refusal


def refused_by_urllib(server: Any, method: str, target: str, headers: Mapping[str, str]) -> tuple[int, Any]:
    request = urllib.request.Request(server.address + target, BODY, dict(headers), method=method)  # noqa: S310 - our own server
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)  # noqa: S310 - as above
    with refused.value as response:
        return response.status, json.loads(response.read())


@pytest.mark.parametrize("refused_by", [refused_by_http_client, refused_by_urllib])
@pytest.mark.parametrize(("method", "target", "headers", "status"), REFUSALS)
def test_a_client_that_is_still_writing_receives_the_refusal(
    strict_server: Any,
    refused_by: Callable[..., tuple[int, Any]],
    method: str,
    target: str,
    headers: dict[str, str],
    status: int,
) -> None:
    for _ in range(MANY_TRIES):
        answered, problem = refused_by(strict_server, method, target, headers)
        assert (answered, problem["status"]) == (status, status)


def test_with_http_workers_a_client_that_is_still_writing_receives_the_refusal(worker_server: Any) -> None:
    for _ in range(MANY_TRIES):
        assert refused_by_http_client(worker_server, "POST", "/v1/classify?model=none", {})[0] == 404
