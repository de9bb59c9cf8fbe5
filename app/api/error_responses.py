"""From an exception to its answer, in one place: every error that leaves the house leaves through here."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from app.http.problems import (
    CONTENT_TYPE,
    INTERNAL_ERROR,
    INVALID_PARAMETER,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    ContentEncodingError,
    Problem,
    RequestError,
    Row,
    TooMuchAtOnceError,
    UnauthorizedError,
    problem,
    row_of,
)
from app.observability.metrics import Metrics
from app.observability.request_record import record_of
from models.interface.errors import DecodersBusyError, GradlessError, ImageError, OverloadedError

# Answers to a body that did not come, or came in excess: no more of it is waited for.
_BROKEN_OFF = frozenset({408, 413})

# Bodies under 100 kB are read and forgotten sooner than a new connection is made.
_SHORT_BODY_DIGITS = 5

_log = logging.getLogger(__name__)


def install(app: FastAPI, metrics: Metrics, routes: Sequence[APIRoute]) -> None:
    """Make `app`, whose routes these are, answer every exception with a problem, counted among the refusals where it is
    one."""

    async def ours(request: Request, error: Exception) -> Response:
        return answer_to(request, metrics, error)

    async def invalid(request: Request, error: Exception) -> Response:
        return _invalid(request, error)

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):  # pragma: no cover - registered for nothing else
            raise error
        row = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}.get(
            error.status_code, Row(error.status_code, "http-error", "The request cannot be answered")
        )
        headers = dict(error.headers or {})
        if row is METHOD_NOT_ALLOWED:
            # The framework names the methods of the first route alone that has the address.
            stated = filter(None, headers.get("Allow", "").split(", "))
            headers["Allow"] = ", ".join(sorted({*stated, *_methods(request, routes)}))
        return answer(request, row, _where(request, row), headers)

    app.add_exception_handler(GradlessError, ours)
    app.add_exception_handler(RequestError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


async def answered(request: Request, metrics: Metrics, handler: Callable[[Request], Awaitable[Response]]) -> Response:
    """What `handler` answers, or the answer to what it raises, as `install` has it. Raises what is nobody's fault but
    ours."""
    try:
        return await handler(request)
    except (GradlessError, RequestError) as error:
        return answer_to(request, metrics, error)
    except RequestValidationError as error:
        return _invalid(request, error)


def answer_to(request: Request, metrics: Metrics, error: Exception) -> Response:
    """The answer to a request that ended with an error of ours, counted among the refusals where it is one."""
    row = _noted(request, metrics, error)
    headers = {}
    if isinstance(error, OverloadedError | DecodersBusyError | TooMuchAtOnceError):
        headers = {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, ContentEncodingError):
        headers = {"Accept-Encoding": error.accepted}
    if isinstance(error, UnauthorizedError):
        headers = {"WWW-Authenticate": error.challenge}
    return answer(request, row, str(error), headers)


def problem_of(request: Request, metrics: Metrics, error: Exception) -> Problem:
    """The problem to end an answer with that has begun, where no status can tell any more."""
    return problem(_noted(request, metrics, error), str(error), record_of(request.scope).request_id)


def fault_of_one(metrics: Metrics, error: ImageError) -> Problem:
    """The problem that stands in one image's place while the others have their answers."""
    row = row_of(error)
    if row.reason is not None:
        metrics.rejected(row.reason)
    return problem(row, str(error), None)


def _methods(request: Request, routes: Sequence[APIRoute]) -> Iterator[str]:
    """Those that the address takes."""
    for route in routes:
        if route.matches(request.scope)[0] != Match.NONE:
            yield from route.methods or ()
            if "GET" in (route.methods or ()):
                # As app/middleware/head.py has it.
                yield "HEAD"


def _where(request: Request, row: Row) -> str:
    path = request.url.path
    slash = row is NOT_FOUND and path.endswith("/") and path.strip("/")
    return f"{request.method} {path}" + (": addresses here have no slash at their end" if slash else "")


def _invalid(request: Request, error: Exception) -> Response:
    return answer(request, INVALID_PARAMETER, _faults(error))


def _noted(request: Request, metrics: Metrics, error: Exception) -> Row:
    """The row of `error`, counted among the refusals where it is one, and logged where it is ours."""
    row = row_of(error)
    record = record_of(request.scope)
    record.problem = row.slug
    if row.reason is not None:
        metrics.rejected(row.reason)
    if row.status == INTERNAL_ERROR.status:
        _log.error("a request failed: %s", error, extra={"request_id": record.request_id})
    return row


def answer(request: Request, row: Row, detail: str, headers: dict[str, str] | None = None) -> Response:
    """The problem as a response, noted as the request's. It ends the connection where the rest of a body would have to
    be waited for."""
    record = record_of(request.scope)
    record.problem = row.slug
    if not record.body_read and _ends_connection(request, row):
        headers = {**(headers or {}), "Connection": "close"}
    body = problem(row, detail, record.request_id)
    return Response(body.model_dump_json(exclude_none=True), row.status, headers=headers, media_type=CONTENT_TYPE)


def body_is_short(declared_length: str | bytes | None, *, chunked: bool) -> bool:
    """Whether a body that nobody reads is let come to its end, so that its connection can be used again."""
    return not chunked and len(declared_length or "") <= _SHORT_BODY_DIGITS


def _ends_connection(request: Request, row: Row) -> bool:
    """Whether the connection is to end with that answer to a request whose body has not been read: the rest of it would
    have to be waited for, and thrown away, before the connection could be used again."""
    headers = request.headers
    short = body_is_short(headers.get("content-length"), chunked="transfer-encoding" in headers)
    return row.status in _BROKEN_OFF or not short


def _faults(error: Exception) -> str:
    if not isinstance(error, RequestValidationError):  # pragma: no cover - registered for nothing else
        raise error
    return "; ".join(f"{'.'.join(str(part) for part in fault['loc'][1:])}: {fault['msg']}" for fault in error.errors())
