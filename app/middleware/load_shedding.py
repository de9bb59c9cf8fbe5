"""Refusing early: in a full house a request for a model that has no place is answered at its headers, before the
application hears of it. Under a flood refusals are most of what the event loop does; forwards miss what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl

from fastapi import Request
from starlette.types import Scope

from app.api.dependencies import Parts
from app.api.error_responses import body_is_short
from app.api.image_route import ImageRoute
from app.http.allowed_hosts import Hosts
from app.http.problems import TABLE, RequestError
from app.http.raw_problem import answer_bytes
from app.observability.request_observer import RequestObserver
from app.security.api_keys import authorize
from models.interface.errors import OverloadedError
from models.interface.telemetry import Task

_ROW = TABLE[OverloadedError]


class Shed(NamedTuple):
    """A refusal as it is sent. `last`: the connection ends with it."""

    answer: bytes
    last: bool


class LoadShedding:
    """`tasks` are the routes that take images, by path, and what is asked there. With `cross_origin`, answers to pages
    of other origins need headers that the application adds."""

    def __init__(
        self,
        parts: Parts,
        observer: RequestObserver,
        hosts: Hosts,
        tasks: Mapping[str, tuple[ImageRoute, Task]],
        *,
        cross_origin: bool,
    ) -> None:
        self._parts = parts
        self._observer = observer
        self._hosts = hosts
        self._tasks = tasks
        self._cross_origin = cross_origin

    @property
    def on(self) -> bool:
        """Whether some model has no place."""
        runtime = self._parts.runtime
        return runtime is not None and runtime.full and not runtime.draining

    def shed(self, scope: Scope, usual_headers: Mapping[str, str], *, keep_alive: bool) -> Shed | None:
        """The refusal of a request with that head, counted and told of; None where it is to go its way. So is all that
        needs a closer look, be it the images of a multipart body, which nobody has counted yet."""
        runtime = self._parts.runtime
        if runtime is None or scope["path"] not in self._tasks:
            return None
        head = dict(scope["headers"])
        route, task = self._tasks[scope["path"]]
        if self._needs_a_closer_look(scope, head) or not route.takes_query(scope["query_string"]):
            return None
        asked = _model(scope["query_string"])
        model = next(iter(runtime.cards)) if asked is None else asked
        overload = runtime.refusal(model, task)
        if overload is None:
            return None
        # For the metrics, which know requests by their routes.
        scope["route"] = route
        record = self._observer.begin(scope)
        record.start_inference(model, task, 1)
        record.problem, record.status = _ROW.slug, _ROW.status
        self._parts.metrics.rejected("queue_full")
        last = not keep_alive or not body_is_short(head.get(b"content-length"), chunked=b"transfer-encoding" in head)
        headers = {
            **usual_headers,
            "retry-after": str(overload.retry_after_s),
            **self._observer.headers(scope, record),
        }
        answer = answer_bytes(_ROW, str(overload), record.request_id, headers, last=last)
        self._observer.end(scope, record, shed=True)
        return Shed(answer, last)

    def _needs_a_closer_look(self, scope: Scope, head: Mapping[bytes, bytes]) -> bool:
        # The dictionary has one of each name: of headers that come twice, somebody else decides which counts.
        if len(head) < len(scope["headers"]) or b"if-match" in head:
            return True
        if b"content-encoding" in head or head.get(b"content-type", b"").lower().startswith(b"multipart/"):
            return True
        if (self._cross_origin and b"origin" in head) or not self._hosts.allow(scope):
            return True
        if not self._parts.keys:
            return False
        try:
            authorize(Request(scope), self._parts.keys, "inference", self._parts.own_names)
        except RequestError:
            return True
        return False


def _model(query_string: bytes) -> str | None:
    if b"model" not in query_string:
        return None
    return dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)).get("model")
