"""Write problems (RFC 9457): as a Starlette response, as the bytes of an HTTP/1.1 response, and as JSON.

No other module serializes a problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from app.http.problems import (
    CONTENT_TYPE,
    INTERNAL_ERROR,
    ContentEncodingError,
    Problem,
    Row,
    UnauthorizedError,
)
from models.interface.errors import AtCapacityError


def problem(row: Row, detail: str | None, request_id: str | None = None) -> Problem:
    """Return the problem of `row`. An internal error has no `detail`: only its request id is sent."""
    public = detail if row.status != INTERNAL_ERROR.status else None
    return Problem(type=row.type, title=row.title, status=row.status, detail=public, request_id=request_id)


def problem_json(row: Row, detail: str | None, request_id: str | None = None) -> str:
    """Return the problem as JSON without null members."""
    return problem(row, detail, request_id).model_dump_json(exclude_none=True)


def problem_headers(error: Exception) -> dict[str, str]:
    """Return the headers that RFC 9110 requires or recommends in the response to `error`."""
    if isinstance(error, AtCapacityError):
        return {"retry-after": str(error.retry_after_s)}
    if isinstance(error, ContentEncodingError):
        return {"accept-encoding": error.accepted}
    if isinstance(error, UnauthorizedError):
        return {"www-authenticate": error.challenge}
    return {}


def problem_response(
    row: Row, detail: str | None, request_id: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the problem as a response for an ASGI application."""
    return Response(problem_json(row, detail, request_id), row.status, headers=headers, media_type=CONTENT_TYPE)


def problem_bytes(
    row: Row, detail: str, request_id: str | None = None, headers: Mapping[str, str] | None = None, *, last: bool
) -> bytes:
    """Return head and body of an HTTP/1.1 response. If `last`, the response closes the connection."""
    body = problem_json(row, detail, request_id).encode()
    lines = [f"HTTP/1.1 {row.status} {HTTPStatus(row.status).phrase}"]
    lines += [f"content-type: {CONTENT_TYPE}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if last:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
