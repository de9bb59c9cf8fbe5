"""One pure ASGI middleware: each request gets an id, is timed, counted once, and answered even when code fails."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.held_bytes import HeldBytes
from app.metrics import Metrics
from app.problems import CLIENT_GONE_STATUS, CONTENT_TYPE, INTERNAL_ERROR, problem
from models.telemetry import StageSeconds

_log = logging.getLogger(__name__)

_KEY = "gradless.observed"
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Observed:
    """What is known of a request so far. `stages` holds the longest time any of its images spent in each."""

    request_id: str
    held: HeldBytes
    held_bytes: int = 0
    started_at: float = field(default_factory=perf_counter)
    model: str | None = None
    read_seconds: float | None = None
    body_read: bool = False
    stages: StageSeconds | None = None
    answered_at: float | None = None
    status: int | None = None

    def hold(self, count: int) -> None:
        """Count bytes of its body until its end. Raises TooMuchAtOnceError."""
        self.held.take(count)
        self.held_bytes += count

    def answered(self, model: str, images: Sequence[StageSeconds]) -> None:
        """Note that the inference side has answered, image by image."""
        self.model = model
        self.answered_at = perf_counter()
        if images:
            self.stages = StageSeconds(
                decode=max(image.decode for image in images),
                queue=max(image.queue for image in images),
                forward=max(image.forward for image in images),
            )

    def server_timing(self) -> str:
        """The Server-Timing header (W3C), durations in milliseconds."""
        parts = {"read": self.read_seconds}
        if self.stages is not None:
            parts |= {
                "decode": self.stages.decode,
                "queue": self.stages.queue,
                "forward": self.stages.forward,
            }
        parts["total"] = perf_counter() - self.started_at
        return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts.items() if seconds is not None)


def observed(scope: Scope) -> Observed:
    """What the middleware knows of this request."""
    known: Observed = scope["state"][_KEY]
    return known


class ObservationMiddleware:
    """Wraps the whole application. `timed_paths` are the routes whose answers carry Server-Timing."""

    def __init__(self, app: ASGIApp, metrics: Metrics, held: HeldBytes, timed_paths: frozenset[str]) -> None:
        self._app = app
        self._held = held
        self._metrics = metrics
        self._timed_paths = timed_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Observed(_request_id(scope), self._held)
        scope.setdefault("state", {})[_KEY] = request

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request.request_id
                if scope["path"] in self._timed_paths:
                    headers["Server-Timing"] = request.server_timing()
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception:
            _log.exception("request %s failed", request.request_id)
            if request.status is not None:
                # Half an answer is out: only a broken connection can tell the caller.
                raise
            await _internal_error(request)(scope, receive, send_observed)
        finally:
            self._held.give_back(request.held_bytes)
            self._record(scope, request)

    def _record(self, scope: Scope, request: Observed) -> None:
        ended_at = perf_counter()
        route = getattr(scope.get("route"), "path", None)
        status = request.status or CLIENT_GONE_STATUS
        self._metrics.request_done(route, scope["method"], status, ended_at - request.started_at, request.request_id)
        if request.model is not None and request.read_seconds is not None and request.answered_at is not None:
            self._metrics.request_stages(request.model, request.read_seconds, ended_at - request.answered_at)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            offered: str = value.decode("latin-1")
            if _ACCEPTABLE_ID.fullmatch(offered):
                return offered
    # To tell requests apart, not to be unguessable.
    return f"{random.getrandbits(64):016x}"


def _internal_error(request: Observed) -> Response:
    body = problem(INTERNAL_ERROR, None, request.request_id)
    return Response(body.model_dump_json(exclude_none=True), INTERNAL_ERROR.status, media_type=CONTENT_TYPE)
