"""Map exceptions to problems (RFC 9457), or to the errors of another protocol: the exception handlers of the
application, and what the routers share."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from app.api.dependencies import parts_of
from app.http.problems import (
    INTERNAL_ERROR,
    INVALID_PARAMETER,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    FaultyImageError,
    Problem,
    RequestError,
    Row,
    problem,
    problem_headers,
    problem_json,
    row_of,
)
from app.observability.request_record import record_of
from models.interface.errors import GradlessError, ImageError

# The body is late or too large: the server does not wait for the rest of it.
_BODY_REFUSED = frozenset({408, 413})

# Bodies under 100 kB are read and discarded: cheaper than a new connection.
_SHORT_BODY_DIGITS = 5

_log = logging.getLogger(__name__)


def handle_errors(app: FastAPI) -> None:
    """Register exception handlers that answer with problems and count refusals."""

    @app.exception_handler(FaultyImageError)
    @app.exception_handler(GradlessError)
    @app.exception_handler(RequestError)
    async def on_error(request: Request, error: Exception) -> Response:
        return error_response(request, error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid_parameter(request: Request, error: RequestValidationError) -> Response:
        found = (f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
        return request_problem(request, INVALID_PARAMETER, "; ".join(found))

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        status, headers, path = error.status_code, dict(error.headers or {}), request.url.path
        row = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}.get(status) or Row(status, "http-error", "HTTP error")
        detail = f"{request.method} {path}"
        if row is METHOD_NOT_ALLOWED:
            # Starlette lists the methods of the first route with this path only. HeadAsGet adds HEAD.
            allowed = {
                method
                for route in app.routes
                if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE
                for method in route.methods or ()
            }
            headers["Allow"] = ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))
        elif row is NOT_FOUND and path.endswith("/") and path.strip("/"):
            detail += ": paths have no trailing slash"
        return request_problem(request, row, detail, headers)


def error_response(request: Request, error: Exception) -> Response:
    """Return the problem of `error`, which has a row in app/http/problems.py; count it if it is a refusal."""
    row = record_problem(request, error)
    return request_problem(request, row, str(error), problem_headers(error))


def event_problem(request: Request, error: Exception) -> str:
    """Return the problem of `error` as JSON, for a stream of events whose status has already been sent."""
    return problem_json(record_problem(request, error), str(error), record_of(request.scope).request_id)


def image_problem(request: Request, error: ImageError) -> Problem:
    """Return the problem of one image, which takes the place of its result among those of other images."""
    return problem(_counted(request, error), str(error))


def request_problem(request: Request, row: Row, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the problem as the response to `request`, in the form of its protocol, and record it. It closes the
    connection if that is cheaper than reading the rest of the body, which the server must do before the next request.
    """
    record = record_of(request.scope)
    record.problem = row.slug
    if not record.body_read:
        stated = request.headers
        short = body_is_short(stated.get("content-length"), chunked="transfer-encoding" in stated)
        if row.status in _BODY_REFUSED or not short:
            headers = {**(headers or {}), "connection": "close"}
    return record.contract.error_response(row, detail, record.request_id, headers)


def body_is_short(declared_length: str | bytes | None, *, chunked: bool) -> bool:
    """Return True if an unread body is discarded to keep its connection open."""
    return not chunked and len(declared_length or "") <= _SHORT_BODY_DIGITS


def record_problem(request: Request, error: Exception) -> Row:
    """Record the problem of `error`: count a refusal, log an internal error. Return its row."""
    row = _counted(request, error)
    record = record_of(request.scope)
    record.problem = row.slug
    if row.status == INTERNAL_ERROR.status:
        _log.error("a request failed: %s", error, extra={"request_id": record.request_id})
    return row


def _counted(request: Request, error: Exception) -> Row:
    """Return the row of `error`, which is counted if it is a refusal."""
    row = row_of(error)
    parts_of(request).metrics.rejected(row.reason)
    return row
