"""The routes of a protocol: every error of theirs has the form of the protocol, and so has a 404 below its prefix."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from app.api.api_route import direct_app
from app.http.contract import Contract
from app.http.problems import NOT_FOUND
from app.observability.request_record import record_of

# The tag of routes that accept images. Dashboards and alerts count their requests (observe/image_routes.py).
IMAGES = "inference"


class ContractRoute(APIRoute):
    """A route whose endpoint is `async (request: Request, **path parameters)`; it returns a Response, or what JSON has.

    FastAPI's dependency solver and its check of bodies are left out: clients of these protocols send parameters and
    keys that must be ignored. The OpenAPI document does not have these routes.
    """

    contract: ClassVar[Contract]

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[object]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def handle(request: Request) -> Response:
            answer = await endpoint(request, **request.path_params)
            if isinstance(answer, Response):
                return answer
            return Response(to_json(answer), media_type="application/json")

        self.app = direct_app(handle)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Before the method is checked: a 405 has the form of the protocol too.
        record_of(scope).contract = self.contract
        await super().handle(scope, receive, send)


class UnknownPath(BaseRoute):
    """Answers the other paths below `prefix` with the 404 of `contract`. It matches as a route with another method
    does, so that the 405 of a route before it remains."""

    def __init__(self, contract: Contract, prefix: str) -> None:
        self._contract = contract
        self._prefix = prefix
        # The label in the metrics.
        self.path_format = f"{prefix}{{path}}"

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        below = scope["type"] == "http" and scope["path"].startswith(self._prefix)
        return (Match.PARTIAL, {"route": self}) if below else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        record_of(scope).contract = self._contract
        raise HTTPException(NOT_FOUND.status)


def contract_router(contract: Contract) -> APIRouter:
    """Return a router whose routes speak `contract`."""
    route_class = type("Route", (ContractRoute,), {"contract": contract})
    return APIRouter(route_class=route_class, include_in_schema=False)
