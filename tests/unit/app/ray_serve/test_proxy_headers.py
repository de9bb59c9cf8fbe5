"""What a replica does about Serve's proxy: who has asked, and whose request it is."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from app.ray_serve.proxy_headers import ProxyHeaders
from app.security.api_keys import is_local


async def seen_and_sent(client: tuple[str, int] | None, own_id: bytes) -> tuple[Request, list[Message]]:
    """The request as the application has it, and what its answer with that id is to its caller."""
    sent: list[Message] = []
    seen: list[Request] = []

    async def application(scope: Scope, _receive: Receive, send: Send) -> None:
        seen.append(Request(scope))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", own_id)]})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "client": client, "headers": [(b"x-request-id", b"the-proxys")]}
    await ProxyHeaders(application)(scope, receive, send)
    return seen[0], sent


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("client", "named"),
    [
        (("127.0.0.1", 5), "for=127.0.0.1"),
        (("::1", 5), 'for="[::1]"'),
        (("testclient", 5), "for=unknown"),
        (None, "for=unknown"),
    ],
)
async def test_nobody_who_comes_by_way_of_the_proxy_is_of_this_machine(
    client: tuple[str, int] | None, named: str
) -> None:
    request, _ = await seen_and_sent(client, b"the-proxys")

    assert not is_local(request)
    assert request.headers["forwarded"] == named


@pytest.mark.anyio
@pytest.mark.parametrize(("own_id", "left"), [(b"the-proxys", []), (b"another", [(b"x-request-id", b"another")])])
async def test_an_id_that_the_proxy_adds_is_not_sent_twice(own_id: bytes, left: list[tuple[bytes, bytes]]) -> None:
    _, [start] = await seen_and_sent(("127.0.0.1", 5), own_id)

    assert start["headers"] == left
