"""What lies between the application and Ray Serve's proxy."""

from __future__ import annotations

from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REQUEST_ID = "x-request-id"


class BehindServe:
    """Says what Serve's proxy does not: that the request came through one. Without that, whoever asks from the proxy's
    machine, or by way of another proxy there, would be taken for a process of the replica's machine, for which the
    lens is open."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_REQUEST_ID)
        forwarded = (b"forwarded", f"for={_node(scope)}".encode("ascii"))

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # The proxy adds the id as well.
                if headers.get(_REQUEST_ID) == given:
                    del headers[_REQUEST_ID]
            await send(message)

        await self._app({**scope, "headers": [*scope["headers"], forwarded]}, receive, send_once)


def _node(scope: Scope) -> str:
    """Who the proxy says has asked, as RFC 7239 writes it."""
    try:
        address = ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):
        return "unknown"
    return f'"[{address}]"' if address.version == 6 else str(address)  # noqa: PLR2004 - that is its name
