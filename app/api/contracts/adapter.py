"""What every adapter uses: routes whose errors have the form of the protocol, and the way from a request to the
predictions of its images, which is that of the native routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from app.api.api_route import MAX_PARAMETERS, direct_app
from app.api.contracts.views import View, check_version, model_of, view_of
from app.api.dependencies import Upload, upload_of
from app.api.inference import infer_images
from app.http.contract import Contract
from app.http.problems import NOT_FOUND, FaultyImageError, InvalidInputError
from app.observability.request_record import record_of
from models.interface.errors import ImageError, ImageTooLargeError
from models.interface.request import Image, InferenceRequest
from models.interface.results import Answer, Prediction

# The tag of routes that accept images. Dashboards and alerts count their requests (observe/image_routes.py).
IMAGES = "inference"

# As of POST /v1/classify.
DEFAULT_TOP_K = 5
MAX_TOP_K = 1000


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


async def upload_for(request: Request, name: str | None, version: str | None = None) -> tuple[Upload, View]:
    """Check a request for the view called `name` before its body is read; None is the default model.

    Raises UnauthorizedError, ForbiddenError, DrainingError, UnknownModelError, UnknownVersionError,
    FingerprintMismatchError.
    """
    model = None if name is None else model_of(name)
    upload = await upload_of(request, model, request.headers.get("if-match"))
    view = view_of(upload.model, name)
    if version is not None:
        check_version(upload.model.name, upload.model.version, version)
    return replace(upload, version=version), view


async def predict(
    upload: Upload, images: Sequence[Image | ImageTooLargeError], request: InferenceRequest
) -> tuple[Answer, Sequence[Prediction]]:
    """Return the answer to `request` and the prediction of each of `images`, in order. The request fails as a whole if
    an image is at fault: these protocols have no place for one image's error.

    Raises FaultyImageError, FingerprintMismatchError, UnknownVersionError, ClientDisconnectedError, and what
    Runtime.predict raises.
    """
    answer = await infer_images(upload, images, request)
    if upload.version is not None:
        # Checked again: another version may have been loaded while the body was received.
        check_version(answer.model, answer.version, upload.version)
    item = record_of(upload.request.scope).contract.item
    predictions = []
    for position, result in enumerate(answer.results):
        if isinstance(result, ImageError):
            raise FaultyImageError(item.format(position), result)
        predictions.append(result)
    return answer, predictions


def query_value(request: Request, name: str) -> str | None:
    """Return a parameter of the query, or None. Raises InvalidInputError if the query has more than MAX_PARAMETERS."""
    if request.scope["query_string"].count(b"&") >= MAX_PARAMETERS:
        raise InvalidInputError(f"The query has more than {MAX_PARAMETERS} parameters.")
    return request.query_params.get(name)


def parameters_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object `parameters` of a JSON body. Raises InvalidInputError."""
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidInputError("parameters must be an object.")
    return parameters


def top_k_of(parameters: Mapping[str, Any]) -> int:
    """Return how many classes an image gets. Raises InvalidInputError."""
    top_k = parameters.get("top_k")
    if top_k is None:
        return DEFAULT_TOP_K
    # True is an int.
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= MAX_TOP_K:
        raise InvalidInputError(f"top_k must be a whole number from 1 to {MAX_TOP_K}.")
    return top_k
