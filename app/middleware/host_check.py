"""The middleware that refuses requests for other hosts than the allowed ones."""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.error_responses import request_problem
from app.http.allowed_hosts import AllowedHosts, authority_error, printable, host_header
from app.http.problems import MALFORMED_REQUEST, UNKNOWN_HOST


class HostCheck:
    """Refuses requests for other hosts than `hosts`."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # The connection has looked already where it is app/server/connection.py's; other servers' may not have.
        fault = authority_error(b"/", scope["headers"], host_needed=False)
        if fault is not None:
            await request_problem(Request(scope), MALFORMED_REQUEST, fault)(scope, receive, send)
        elif not self._hosts.allow(scope):
            stated = printable(host_header(scope) or b"")
            detail = f"It is not served under {stated}; GRADLESS_ALLOWED_HOSTS says under which names it is."
            await request_problem(Request(scope), UNKNOWN_HOST, detail)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
