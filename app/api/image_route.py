"""The route class of endpoints that accept images. It validates the query and calls the endpoint without FastAPI's
dependency solver, which costs 6 % more CPU per image with the null model (benchmarks/image_route.py)."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, get_args

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError, create_model
from starlette.responses import Response

from app.api.api_route import ApiRoute
from app.api.dependencies import ModelName, Upload


class ImageRoute(ApiRoute):
    """A route for endpoints `async (upload: <Upload by a dependency>, <query parameters>) -> a schema or a Response`.

    FastAPI reads the signature for the OpenAPI document, and `_handler_of` answers requests. The query is validated
    before the body is read. Exceptions are handled as for other routes.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = _handler_of(self.endpoint)

        async def handle_checked(request: Request) -> Response:
            self.check_query(request.scope["query_string"])
            return await handle(request)

        return handle_checked


def _handler_of(endpoint: Callable[..., Any]) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    parameters = inspect.signature(endpoint, eval_str=True).parameters
    [depends] = get_args(parameters["upload"].annotation)[1:]
    upload_of: Callable[..., Awaitable[Upload]] = depends.dependency
    fields: dict[str, Any] = {
        name: (parameter.annotation, parameter.default) for name, parameter in parameters.items() if name != "upload"
    }
    query_type = create_model("Query", **fields, model=(ModelName, None))
    without_query = query_type()

    async def handle(request: Request) -> Response:
        query = _query(query_type, request) if request.scope["query_string"] else without_query
        values = dict(query)
        upload = await upload_of(request, values.pop("model"), request.headers.get("if-match"))
        answer = await endpoint(upload, **values)
        if isinstance(answer, Response):
            return answer
        return Response(answer.model_dump_json(), media_type="application/json")

    return handle


def _query(query_type: type[BaseModel], request: Request) -> BaseModel:
    try:
        return query_type.model_validate(dict(request.query_params))
    except ValidationError as error:
        errors = [{**each, "loc": ("query", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(errors) from None
