"""Says no before it costs anything: when there is no place for an image, its request is refused at its headers.

Under a flood most of what arrives is refused, on the event loop that the accepted wait for as well. Through the
framework, and with the body read, a refusal costs three times as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qs

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access import authorize
from app.dependencies import Parts
from app.faults import answer_to
from app.observed import observed
from app.problems import RequestError
from models.errors import OverloadedError
from models.telemetry import Task


class LoadShedding:
    """`tasks` are the routes that take images, and what is asked there.

    What needs a closer look, be it the images of a multipart body, which nobody has counted yet, passes on.
    """

    def __init__(self, app: ASGIApp, parts: Parts, tasks: Sequence[tuple[APIRoute, Task]]) -> None:
        self._app = app
        self._parts = parts
        self._asked = {route.path: (route, task) for route, task in tasks}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._asked:
            request = Request(scope)
            route, task = self._asked[scope["path"]]
            if (refusal := self._refusal(request, task)) is not None:
                # For the metrics, which know requests by their routes.
                scope["route"] = route
                await answer_to(request, self._parts.metrics, refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request, task: Task) -> OverloadedError | None:
        runtime, headers = self._parts.runtime, request.headers
        if runtime is None or not runtime.full or runtime.draining:
            return None
        if "if-match" in headers or headers.get("content-type", "").startswith("multipart/"):
            return None
        try:
            authorize(request, self._parts.keys, "inference")
        except RequestError:
            return None
        model = _model(request.scope["query_string"]) or next(iter(runtime.cards))
        refusal = runtime.refusal(model, task)
        if refusal is not None:
            observed(request.scope).asks(model, task, 1)
        return refusal


def _model(query_string: bytes) -> str | None:
    if b"model" not in query_string:
        return None
    return next(iter(parse_qs(query_string.decode("latin-1")).get("model", [])), None)
