"""Each request gets an id, is timed and told of once; around the application by one pure ASGI middleware, which also
answers when code fails."""

from __future__ import annotations

import logging
import random
import re
from time import perf_counter
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.body_budget import BodyBudget
from app.http.problem_response import problem_response
from app.http.problems import CLIENT_GONE_STATUS, INTERNAL_ERROR
from app.observability.metrics import Metrics
from app.observability.request_log import RequestLog
from app.observability.request_record import RequestRecord, RequestTrace, observe

_log = logging.getLogger(__name__)

_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Traces(Protocol):
    """Begins the trace of a request, or goes on with its caller's."""

    def begin(self, scope: Scope) -> RequestTrace | None: ...

    def close(self) -> None:
        """Hand over what is left. Blocks, for some seconds at most."""


class RequestObserver:
    """From a request's beginning to what is told of it. `timed_paths` are the routes whose answers carry
    Server-Timing."""

    def __init__(
        self,
        metrics: Metrics,
        request_log: RequestLog,
        held: BodyBudget,
        timed_paths: frozenset[str],
        traces: Traces | None = None,
    ) -> None:
        self._held = held
        self._metrics = metrics
        self._request_log = request_log
        self._timed_paths = timed_paths
        self._traces = traces

    def begin(self, scope: Scope) -> RequestRecord:
        """What will be known of a request, kept in its `scope`."""
        trace = self._traces.begin(scope) if self._traces else None
        request = RequestRecord(_request_id(scope), self._held, trace)
        observe(scope, request)
        return request

    def headers(self, scope: Scope, request: RequestRecord) -> dict[str, str]:
        """What its answer has in its head, whatever it is."""
        headers = {"x-request-id": request.request_id, "x-content-type-options": "nosniff"}
        if request.trace is not None:
            headers["traceresponse"] = request.trace.response_header
        if scope["path"] in self._timed_paths:
            headers["server-timing"] = request.server_timing()
        return headers

    def end(self, scope: Scope, request: RequestRecord, *, shed: bool = False) -> None:
        """Tell of it. `shed`: it is one of many that were refused at their headers."""
        self._held.give_back(request.held_bytes)
        request.ended_at = perf_counter()
        seconds = request.ended_at - request.started_at
        # As the documentation writes it: a name that may hold slashes is {name} there.
        route = getattr(scope.get("route"), "path_format", None)
        status = request.status or CLIENT_GONE_STATUS
        # One that is shed has no line of its own in the log, which an exemplar would lead to.
        self._metrics.request_done(route, scope["method"], status, seconds, None if shed else request.request_id)
        respond_seconds = request.respond_seconds
        if request.model is not None and request.read_seconds is not None and respond_seconds is not None:
            self._metrics.request_stages(request.model, request.read_seconds, respond_seconds)
        if shed:
            self._request_log.shed(scope, request, status, seconds)
        else:
            self._request_log.ended(scope, request, status, seconds)
        if request.trace is not None:
            request.trace.end(request, route, status)


class RequestObserverMiddleware:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, observation: RequestObserver) -> None:
        self._app = app
        self._observation = observation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = self._observation.begin(scope)

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                own = self._observation.headers(scope, request).items()
                # A list of its own: that of the message may be one that a response keeps.
                message["headers"] = [*message["headers"], *((n.encode(), v.encode("latin-1")) for n, v in own)]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception:
            _log.exception("a request failed", extra={"request_id": request.request_id})
            if request.status is not None:
                # Half an answer is out: only a broken connection can tell the caller.
                raise
            request.problem = INTERNAL_ERROR.slug
            response = problem_response(INTERNAL_ERROR, None, request.request_id)
            await response(scope, receive, send_observed)
        finally:
            self._observation.end(scope, request)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            offered: str = value.decode("latin-1")
            if _ACCEPTABLE_ID.fullmatch(offered):
                return offered
    # To tell requests apart, not to be unguessable.
    return f"{random.getrandbits(64):016x}"
