"""ProxyHeaders: forwarded requests and request ids behind Serve's proxy."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from app.http.api_keys import is_local
from app.ray_serve.replica import ProxyHeaders


async def exchange(client: tuple[str, int] | None, own_id: bytes) -> tuple[Request, list[Message]]:
    """Return the request as the application gets it, and the response with `own_id` as the client gets it."""
    sent: list[Message] = []
    requests: list[Request] = []

    async def application(scope: Scope, _receive: Receive, send: Send) -> None:
        requests.append(Request(scope))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", own_id)]})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "client": client, "headers": [(b"x-request-id", b"the-proxys")]}
    await ProxyHeaders(application)(scope, receive, send)
    return requests[0], sent


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("client", "forwarded"),
    [
        (("127.0.0.1", 5), "for=127.0.0.1"),
        (("::1", 5), 'for="[::1]"'),
        (("testclient", 5), "for=unknown"),
        (None, "for=unknown"),
    ],
)
async def test_no_client_behind_the_proxy_counts_as_localhost(client: tuple[str, int] | None, forwarded: str) -> None:
    request, _ = await exchange(client, b"the-proxys")

    assert not is_local(request)
    assert request.headers["forwarded"] == forwarded


@pytest.mark.anyio
@pytest.mark.parametrize(("own_id", "left"), [(b"the-proxys", []), (b"another", [(b"x-request-id", b"another")])])
async def test_a_request_id_that_the_proxy_adds_is_not_sent_twice(
    own_id: bytes, left: list[tuple[bytes, bytes]]
) -> None:
    _, [start] = await exchange(("127.0.0.1", 5), own_id)

    assert start["headers"] == left
