"""What OpenAPI is told beyond what FastAPI sees for itself: bodies that are images, and errors that are problems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from app.http.allowed_hosts import PROBES
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
from models.images.formats import TITLES

_BINARY = {"schema": {"type": "string", "format": "binary"}}

_UNAUTHORIZED = str(TABLE[UnauthorizedError].status)

# The two headers that app/security/api_keys.py looks into.
_KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "an API key"},
}

# Of every route that takes images.
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"One image file as it is ({', '.join(TITLES)}), or several as multipart files.",
        "content": {
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": _BINARY["schema"], "minItems": 1}},
                    "required": ["images"],
                }
            },
        },
    }
}


def answers(*errors: type[Exception] | Row) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these problems, beside 422 and 500, which each can."""
    rows = [error if isinstance(error, Row) else TABLE[error] for error in errors]
    by_status: dict[int, list[Row]] = {}
    for row in (*rows, INVALID_PARAMETER, INTERNAL_ERROR):
        by_status.setdefault(row.status, []).append(row)
    return {status: _answer(*found) for status, found in sorted(by_status.items())}


def _answer(*rows: Row) -> dict[str, Any]:
    return {
        "description": "; ".join(map(_described, rows)),
        "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _described(row: Row) -> str:
    return f"{row.title} (`{row.type}`)"


def _add_answers_of_connections(path: str, responses: dict[str, Any]) -> None:
    """Refusals of a head or of how a body is framed, and of the host where that is looked at."""
    for row in (
        MALFORMED_REQUEST,
        TOO_FINELY_CHUNKED,
        TABLE[SlowBodyError],
        *(() if path in PROBES else (UNKNOWN_HOST,)),
        HEADERS_TOO_LARGE,
    ):
        answer = responses.setdefault(str(row.status), _answer(row))
        if _described(row) not in answer["description"]:
            answer["description"] += f"; {_described(row)}"
    ordered = sorted(responses.items())
    responses.clear()
    responses.update(ordered)


def documented_ends(router: APIRouter) -> Iterator[tuple[str, str, int]]:
    """(path, method, status) of each way in which the documentation has requests to `router` end; where a body is
    waited for, its caller may leave as well."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            statuses = {route.status_code or 200, *map(int, route.responses)}
            if TABLE[SlowBodyError].status in statuses:
                statuses.add(CLIENT_GONE_STATUS)
            yield from (
                (route.path_format, method, status) for method in route.methods or () for status in sorted(statuses)
            )


def other_ends() -> Iterator[tuple[None, str, int]]:
    """(no path, method, status) of each way in which requests end that reach none of the documented routes: there is
    nothing there, or nothing under that name, or the documentation is; or it is none, and has no method either."""
    for method in ("GET", "POST"):
        yield from ((None, method, row.status) for row in (NOT_FOUND, UNKNOWN_HOST))
    yield None, "GET", 200
    yield from ((None, "", row.status) for row in (MALFORMED_REQUEST, TABLE[SlowBodyError], HEADERS_TOO_LARGE))


def complete_document(app: FastAPI, *, keys: bool) -> None:
    """Add the Problem schema, which no route declares as its own, and the errors that come before a route is found.
    Take out FastAPI's error schemas, which no route answers with. `keys`: tell of them too, so that /docs and generated
    clients can send one."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _add_answers_of_connections(path, operation["responses"])
        schemas["Problem"] = Problem.model_json_schema()
        for replaced in ("HTTPValidationError", "ValidationError"):
            schemas.pop(replaced, None)
        if keys:
            document["components"]["securitySchemes"] = _KEY_SCHEMES
            for operation in (each for path in document["paths"].values() for each in path.values()):
                if _UNAUTHORIZED in operation["responses"]:
                    # One of them is enough.
                    operation["security"] = [{name: []} for name in _KEY_SCHEMES]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
