"""Adapt requests and responses to Ray Serve's proxy."""

from __future__ import annotations

from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REQUEST_ID = "x-request-id"


class ProxyHeaders:
    """ASGI middleware that marks each request as forwarded, which Serve's proxy does not do.

    Without the mark, clients on the proxy's machine, or behind another proxy there, would count as localhost, which may
    use the lens without a key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(_REQUEST_ID)
        forwarded = (b"forwarded", f"for={_node(scope)}".encode("ascii"))

        async def send_without_duplicate(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # The proxy adds the id that it gave the request itself.
                if headers.get(_REQUEST_ID) == request_id:
                    del headers[_REQUEST_ID]
            await send(message)

        await self._app({**scope, "headers": [*scope["headers"], forwarded]}, receive, send_without_duplicate)


def _node(scope: Scope) -> str:
    """Return the client's address according to the proxy, in the syntax of RFC 7239."""
    try:
        address = ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):
        return "unknown"
    return f'"[{address}]"' if address.version == 6 else str(address)  # noqa: PLR2004 - IPv6
