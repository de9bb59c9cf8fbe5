"""Complete the OpenAPI document: problems as error responses, errors of the connection, API keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.http.hosts import PROBES
from app.http.problems import (
    CLIENT_GONE_STATUS,
    CONTENT_TYPE,
    HEADERS_TOO_LARGE,
    INTERNAL_ERROR,
    INVALID_PARAMETER,
    MALFORMED_REQUEST,
    NOT_FOUND,
    TABLE,
    TOO_FINELY_CHUNKED,
    UNKNOWN_HOST,
    Problem,
    Row,
    SlowBodyError,
    UnauthorizedError,
)

_UNAUTHORIZED = str(TABLE[UnauthorizedError].status)

# The two headers that app/http/api_keys.py reads.
_KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "API key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "API key"},
}


def responses(*errors: type[Exception] | Row) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route for the `responses` argument of FastAPI: these errors, 422 and 500."""
    rows = [error if isinstance(error, Row) else TABLE[error] for error in errors]
    by_status: dict[int, list[Row]] = {}
    for row in (*rows, INVALID_PARAMETER, INTERNAL_ERROR):
        by_status.setdefault(row.status, []).append(row)
    return {status: _response(*found) for status, found in sorted(by_status.items())}


def image_content(**limits: int) -> dict[str, Any]:
    """Return the content of a request body of images: one file, or multipart files. `limits` are those of the array."""
    file = {"schema": {"type": "string", "format": "binary"}}
    files = {"type": "array", "items": file["schema"], "minItems": 1, **limits}
    form = {"type": "object", "properties": {"images": files}, "required": ["images"]}
    return {"image/*": file, "application/octet-stream": file, "multipart/form-data": {"schema": form}}


def _response(*rows: Row) -> dict[str, Any]:
    return {
        "description": "; ".join(map(_description, rows)),
        "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _description(row: Row) -> str:
    return f"{row.title} (`{row.type}`)"


def _with_connection_errors(path: str, responses: dict[str, Any]) -> dict[str, Any]:
    """Add the errors that are sent before a route is found: malformed heads and bodies, and unknown hosts."""
    unknown_host = () if path in PROBES else (UNKNOWN_HOST,)
    for row in (MALFORMED_REQUEST, TOO_FINELY_CHUNKED, TABLE[SlowBodyError], *unknown_host, HEADERS_TOO_LARGE):
        answer = responses.setdefault(str(row.status), _response(row))
        if _description(row) not in answer["description"]:
            answer["description"] += f"; {_description(row)}"
    return dict(sorted(responses.items()))


def documented_statuses(routes: Iterable[BaseRoute]) -> Iterator[tuple[str | None, str, int]]:
    """Yield (path, method, status) for each documented response of `routes`. Routes that read a body also have the
    status of a client that disconnected."""
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            statuses = {route.status_code or 200, *map(int, route.responses)}
            if TABLE[SlowBodyError].status in statuses:
                statuses.add(CLIENT_GONE_STATUS)
            yield from (
                (route.path_format, method, status) for method in route.methods or () for status in sorted(statuses)
            )


def undocumented_statuses() -> Iterator[tuple[str | None, str, int]]:
    """Yield (None, method, status) for the responses without a documented route: unknown paths and hosts, the pages,
    and malformed requests, whose method is unknown."""
    for method in ("GET", "POST"):
        yield from ((None, method, row.status) for row in (NOT_FOUND, UNKNOWN_HOST))
    yield None, "GET", 200
    yield from ((None, "", row.status) for row in (MALFORMED_REQUEST, TABLE[SlowBodyError], HEADERS_TOO_LARGE))


def extend_openapi(app: FastAPI, *, keys: bool) -> None:
    """Make `app.openapi` return the complete document.

    It adds the Problem schema and the errors that are sent before a route is found, and removes FastAPI's own error
    schemas, which no route uses. With `keys` it documents the API key, so that /docs and generated clients can send it.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"] = _with_connection_errors(path, operation["responses"])
                if keys and _UNAUTHORIZED in operation["responses"]:
                    # A client sends one of the two headers.
                    operation["security"] = [{name: []} for name in _KEY_SCHEMES]
        schemas["Problem"] = Problem.model_json_schema()
        for replaced in ("HTTPValidationError", "ValidationError"):
            schemas.pop(replaced, None)
        if keys:
            document["components"]["securitySchemes"] = _KEY_SCHEMES
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
