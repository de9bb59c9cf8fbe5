"""Middleware that refuses requests for hosts that are not allowed."""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.error_responses import request_problem
from app.http.allowed_hosts import AllowedHosts, authority_error, host_header, printable
from app.http.problems import MALFORMED_REQUEST, UNKNOWN_HOST


class HostCheck:
    """Answers requests for a host outside `hosts` with 421, and malformed Host headers with 400."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # app/server/connection.py has checked this already, but other ASGI servers may not have.
        error = authority_error(b"/", scope["headers"], host_needed=False)
        if error is not None:
            await request_problem(Request(scope), MALFORMED_REQUEST, error)(scope, receive, send)
        elif not self._hosts.allow(scope):
            stated = printable(host_header(scope) or b"")
            detail = f"The host {stated} is not served here. GRADLESS_ALLOWED_HOSTS lists the hosts that are."
            await request_problem(Request(scope), UNKNOWN_HOST, detail)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
