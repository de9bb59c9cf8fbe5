"""Requests with images go straight to their handlers. The framework's way there, its exception handlers, exit stacks
and routing, is for routes that need it, and on the event loop every request waits for every other's way."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dependencies import Parts
from app.api.error_responses import handle_with_problems


class FastPath:
    """`routes` are those whose handlers need nothing of FastAPI's around them but what becomes of exceptions, as those
    of ImageRoute: POST, without parameters in the path."""

    def __init__(self, app: ASGIApp, parts: Parts, routes: Sequence[APIRoute]) -> None:
        self._app = app
        self._parts = parts
        self._handlers = {route.path: (route, route.get_route_handler()) for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._handlers:
            await self._app(scope, receive, send)
            return
        # For the metrics, which know requests by their routes.
        scope["route"], handler = self._handlers[scope["path"]]
        request = Request(scope, receive, send)
        response = await handle_with_problems(request, self._parts.metrics, handler)
        await response(scope, receive, send)
