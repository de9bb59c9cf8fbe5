"""The route classes. ApiRoute, of every documented route, rejects unknown and repeated query parameters. ImageRoute, of
routes that accept images, also calls its endpoint without FastAPI's dependency solver."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError, create_model
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dependencies import upload_of
from models.interface.turns import in_turns

# Parameters of a query. The parser takes a microsecond for each.
MAX_PARAMETERS = 64

# Limits of an error message: parameters named, and characters of a name.
_MAX_NAMED = 4
_MAX_NAME_CHARACTERS = 64

# The last field of each schema that an endpoint of ImageRoute returns.
_RESULTS = "results"


class ApiRoute(APIRoute):
    """FastAPI ignores unknown parameters, and all but the last value of a repeated one. A misspelt parameter would go
    unnoticed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = self._handler()

        async def handle_checked(request: Request) -> Response:
            query_string = request.scope["query_string"]
            if query_string and (errors := list(islice(self._query_errors(query_string), _MAX_NAMED))):
                raise RequestValidationError(errors)
            return await handle(request)

        return handle_checked

    def _handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return super().get_route_handler()

    def takes_query(self, query_string: bytes) -> bool:
        """Return True if each parameter is known, and occurs once unless it is a list. Values are not validated."""
        return not query_string or not any(self._query_errors(query_string))

    @cached_property
    def _parameters(self) -> dict[str, bool]:
        """The names of the query parameters, and whether each may be repeated."""
        # From the OpenAPI document: FastAPI has no other public API for the parameters of a route with dependencies.
        paths = get_openapi(title="", version="", routes=[self])["paths"]
        return {
            parameter["name"]: parameter["schema"].get("type") == "array"
            for path in paths.values()
            for operation in path.values()
            for parameter in operation.get("parameters", [])
            if parameter["in"] == "query"
        }

    def _query_errors(self, query_string: bytes) -> Iterator[dict[str, Any]]:
        """Yield the errors in the form of pydantic."""
        if query_string.count(b"&") >= MAX_PARAMETERS:
            message = f"it has more than {MAX_PARAMETERS} parameters"
            yield {"type": "query", "loc": ("query", "query"), "msg": message, "input": None}
            return
        counts = Counter(name for name, _ in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
        for name, count in counts.items():
            shown = name[:_MAX_NAME_CHARACTERS]
            if name not in self._parameters:
                message = f"unknown parameter; {self._suggestion(shown)}"
            elif count > 1 and not self._parameters[name]:
                message = f"given {count} times; it accepts one value"
            else:
                continue
            yield {"type": "query", "loc": ("query", shown), "msg": message, "input": None}

    def _suggestion(self, name: str) -> str:
        if similar := get_close_matches(name.lower(), self._parameters, 1):
            return f"did you mean {similar[0]}?"
        return f"this route accepts {', '.join(self._parameters) or 'none'}"


class ImageRoute(ApiRoute):
    """A route whose endpoint is `async (upload: ImageUpload, <query parameters>) -> a schema or a Response`.

    FastAPI reads the signature for the OpenAPI document. Its dependency solver would take 6 % more CPU time an image
    with the null model (benchmarks/fast_paths.py). Names in the query are checked first, then key and model, then the
    query's values; the endpoint reads the body.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = direct_app(self.get_route_handler())

    def _handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint
        query_type = _query_type(endpoint)
        defaults = dict(query_type())

        async def handle(request: Request) -> Response:
            has_query = bool(request.scope["query_string"])
            model = request.query_params.get("model") if has_query else None
            upload = await upload_of(request, model, request.headers.get("if-match"))
            query = _validated(query_type, request) if has_query else defaults
            answer = await endpoint(upload, **query)
            if isinstance(answer, Response):
                return answer
            return Response(await _json_of(answer), media_type="application/json")

        return handle


def direct_app(handle: Callable[[Request], Coroutine[Any, Any, Response]]) -> ASGIApp:
    """Return an application that answers as `handle` does, without the exit stacks of FastAPI's own, which are for
    dependencies."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handle(Request(scope, receive, send))
        await response(scope, receive, send)

    return app


async def _json_of(answer: BaseModel) -> str:
    """Return `answer` in JSON. Several results, its last field, are converted one by one: all may be 15 MB, for which
    one call would stop the event loop for a tenth of a second."""
    results: list[BaseModel] = getattr(answer, _RESULTS)
    if len(results) == 1:
        return answer.model_dump_json()
    head = answer.model_copy(update={_RESULTS: []}).model_dump_json().removesuffix("]}")
    return head + ",".join(await in_turns(BaseModel.model_dump_json, results)) + "]}"


def _query_type(endpoint: Callable[..., Any]) -> type[BaseModel]:
    """Return a model of the endpoint's query parameters."""
    parameters = inspect.signature(endpoint, eval_str=True).parameters
    fields: dict[str, Any] = {
        name: (parameter.annotation, parameter.default) for name, parameter in parameters.items() if name != "upload"
    }
    return create_model("Query", **fields)


def _validated(query_type: type[BaseModel], request: Request) -> dict[str, Any]:
    try:
        return dict(query_type.model_validate(dict(request.query_params)))
    except ValidationError as error:
        errors = [{**each, "loc": ("query", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(errors) from None
