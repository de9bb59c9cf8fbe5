"""Refusing early: in a full house a request for a model that has no place is answered at its headers, before the
application hears of it. Under a flood refusals are most of what the event loop does; forwards miss what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qs

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Scope

from app.access import authorize
from app.answer_bytes import answer_bytes
from app.dependencies import Parts
from app.faults import ends_connection
from app.hosts import Hosts
from app.observation import Observation
from app.problems import TABLE, RequestError
from models.errors import OverloadedError
from models.telemetry import Task

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
        observation: Observation,
        hosts: Hosts,
        tasks: Mapping[str, tuple[APIRoute, Task]],
        *,
        cross_origin: bool,
    ) -> None:
        self._parts = parts
        self._observation = observation
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
        request = Request(scope)
        if self._needs_a_closer_look(request):
            return None
        route, task = self._tasks[scope["path"]]
        model = _model(scope["query_string"]) or next(iter(runtime.cards))
        overload = runtime.refusal(model, task)
        if overload is None:
            return None
        # For the metrics, which know requests by their routes.
        scope["route"] = route
        seen = self._observation.begin(scope)
        seen.asks(model, task, 1)
        seen.problem, seen.status = _ROW.slug, _ROW.status
        self._parts.metrics.rejected("queue_full")
        last = not keep_alive or ends_connection(request, _ROW)
        headers = {
            **usual_headers,
            "retry-after": str(overload.retry_after_s),
            **self._observation.headers(scope, seen),
        }
        answer = answer_bytes(_ROW, str(overload), seen.request_id, headers, last=last)
        self._observation.end(scope, seen, shed=True)
        return Shed(answer, last)

    def _needs_a_closer_look(self, request: Request) -> bool:
        headers = request.headers
        if "if-match" in headers or headers.get("content-type", "").startswith("multipart/"):
            return True
        if (self._cross_origin and "origin" in headers) or not self._hosts.allow(request.scope):
            return True
        try:
            authorize(request, self._parts.keys, "inference")
        except RequestError:
            return True
        return False


def _model(query_string: bytes) -> str | None:
    if b"model" not in query_string:
        return None
    return next(iter(parse_qs(query_string.decode("latin-1")).get("model", [])), None)
