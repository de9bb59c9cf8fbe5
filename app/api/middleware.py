"""ASGI middleware: the host check, HEAD as GET, and one line for a failed start."""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import Parts
from app.api.error_responses import request_problem
from app.http.hosts import AllowedHosts, authority_error, host_header, printable
from app.http.problems import MALFORMED_REQUEST, UNKNOWN_HOST


class HostCheck:
    """Answers requests for a host outside `hosts` with 421, and malformed Host headers with 400."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app
        if scope["type"] == "http":
            # app/server/connection.py has checked this already, but other ASGI servers may not have.
            error = authority_error(b"/", scope["headers"], host_needed=False)
            if error is not None:
                answer = request_problem(Request(scope), MALFORMED_REQUEST, error)
            elif not self._hosts.allow(scope):
                stated = printable(host_header(scope) or b"")
                detail = f"The host {stated} is not served here. GRADLESS_ALLOWED_HOSTS lists the hosts that are."
                answer = request_problem(Request(scope), UNKNOWN_HOST, detail)
        await answer(scope, receive, send)


class HeadAsGet:
    """Answers HEAD wherever there is GET (RFC 9110, section 9.3.2): same status and headers, no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        # A copy, because the server reads the method in its own scope.
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send_head)
        finally:
            # The metrics are labelled with the route.
            if "route" in as_get:
                scope["route"] = as_get["route"]


class PlainStartFailures:
    """Replaces the traceback that Starlette reports for a failed start by one line."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_plain(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self._parts.start_error is not None:
                message["message"] = f"cannot start: {self._parts.start_error}"
            await send(message)

        await self._app(scope, receive, send_plain if scope["type"] == "lifespan" else send)
