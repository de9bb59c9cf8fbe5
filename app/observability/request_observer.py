"""Give each request an id, time it, and report it once: a pure ASGI middleware around the whole application, which also
answers 500 when the application raises."""

from __future__ import annotations

import logging
import random
import re
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.problems import CLIENT_GONE_STATUS, INTERNAL_ERROR
from app.observability.metrics import Metrics
from app.observability.request_log import RequestLog
from app.observability.request_record import RequestRecord, keep_record
from models.interface.admission import Budget

if TYPE_CHECKING:
    from app.observability.tracing import Traces

_log = logging.getLogger(__name__)

_FIRST_ERROR = 400

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestObserver:
    """Creates the record of each request, and reports it to metrics, log and trace when the request ends.

    Responses of `timed_paths`, and all with results for images, get a Server-Timing header.
    """

    def __init__(
        self,
        metrics: Metrics,
        request_log: RequestLog,
        body_budget: Budget,
        timed_paths: frozenset[str],
        traces: Traces | None = None,
    ) -> None:
        self._body_budget = body_budget
        self._metrics = metrics
        self._request_log = request_log
        self._timed_paths = timed_paths
        self._traces = traces

    def begin(self, scope: Scope) -> RequestRecord:
        """Create the request's record and keep it in `scope`."""
        trace = self._traces.begin(scope) if self._traces else None
        record = RequestRecord(stated_request_id(scope) or new_request_id(), self._body_budget, trace)
        keep_record(scope, record)
        return record

    def headers(self, scope: Scope, record: RequestRecord) -> dict[str, str]:
        """Return the headers that every response gets."""
        headers = {"x-request-id": record.request_id, "x-content-type-options": "nosniff"}
        if record.trace is not None:
            headers["traceresponse"] = record.trace.response_header
        if scope["path"] in self._timed_paths or record.task is not None:
            headers["server-timing"] = record.server_timing()
        return headers

    def end(self, scope: Scope, record: RequestRecord, *, shed: bool = False) -> None:
        """Report the request. `shed`: load shedding refused it at its headers, probably one of many."""
        self._body_budget.release(record.body_bytes + record.held_bytes)
        record.ended_at = perf_counter()
        seconds = record.ended_at - record.started_at
        # The template as in the OpenAPI document: {name}, also where the router's own template is {name:path}.
        route = getattr(scope.get("route"), "path_format", None)
        status = record.status or CLIENT_GONE_STATUS
        # A shed request has no log line of its own that an exemplar could lead to.
        request_id = None if shed else record.request_id
        self._metrics.request_done(route, scope["method"], status, seconds, request_id, record.contract)
        if record.model is not None:
            self._metrics.model_request_done(record.model, "ok" if status < _FIRST_ERROR else "failed", seconds)
        respond_seconds = record.respond_seconds
        if record.model is not None and record.read_seconds is not None and respond_seconds is not None:
            self._metrics.request_stages(record.model, record.read_seconds, respond_seconds)
        if shed:
            self._request_log.log_shed(scope, record, status, seconds)
        else:
            self._request_log.log_request(scope, record, status, seconds)
        if record.trace is not None:
            record.trace.end(record, route, status)


class RequestObserverMiddleware:
    """Observes every HTTP request of the application that it wraps."""

    def __init__(self, app: ASGIApp, observer: RequestObserver) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = self._observer.begin(scope)

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                added = self._observer.headers(scope, record).items()
                # A new list: a response may send the same list of headers again.
                message["headers"] = [*message["headers"], *[(n.encode(), v.encode("latin-1")) for n, v in added]]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception:
            _log.exception("a request failed", extra={"request_id": record.request_id})
            if record.status is not None:
                # The response has begun: only a broken connection can still signal the error.
                raise
            record.problem = INTERNAL_ERROR.slug
            response = record.contract.error_response(INTERNAL_ERROR, None, record.request_id, None)
            await response(scope, receive, send_observed)
        finally:
            self._observer.end(scope, record)


def stated_request_id(scope: Scope) -> str | None:
    """Return the id that the client of a request states; None without a valid one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            offered: str = value.decode("latin-1")
            if _VALID_REQUEST_ID.fullmatch(offered):
                return offered
    return None


def new_request_id() -> str:
    """Return the id of a request whose client states none."""
    # Ids tell requests apart; they need not be unpredictable.
    return f"{random.getrandbits(64):016x}"
