"""Load shedding: when a model is at capacity, its requests are answered with 429 at their headers.

The connection sends the answer without running the application. Under overload most of the event loop's work is
refusals, so their cost limits throughput.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl

from fastapi import Request
from starlette.routing import BaseRoute
from starlette.types import Scope

from app.api.api_route import ApiRoute
from app.api.dependencies import Parts
from app.api.error_responses import body_is_short
from app.api.inference import CLASSIFY, IMAGE_ENDPOINTS
from app.http.api_keys import authorize
from app.http.hosts import AllowedHosts
from app.http.problems import RequestError, problem_bytes, problem_headers, row_of
from app.observability.request_observer import RequestObserver

# Bodies of these types have an unknown number of images.
_OF_SEVERAL_IMAGES = (b"multipart/", b"application/json")


class Shed(NamedTuple):
    """The bytes of a refusal. If `last`, it closes the connection."""

    answer: bytes
    last: bool


class LoadShedding:
    """Decides which requests are refused at their headers, and records them."""

    def __init__(
        self, parts: Parts, observer: RequestObserver, hosts: AllowedHosts, routes: Sequence[BaseRoute]
    ) -> None:
        self._parts = parts
        self._observer = observer
        self._hosts = hosts
        by_path = {route.path: route for route in routes if isinstance(route, ApiRoute)}
        self._endpoints = {each.path: (by_path[each.path], each.task) for each in IMAGE_ENDPOINTS if each.sheddable}
        # The application adds CORS headers to its answers.
        self._cross_origin = bool(parts.settings.cors_origins)

    @property
    def on(self) -> bool:
        """True if heads must be checked: some model may be at capacity once the requests that have just arrived are
        admitted."""
        runtime = self._parts.runtime
        return runtime is not None and runtime.half_full and not runtime.draining

    def shed(self, scope: Scope, usual_headers: Mapping[str, str], *, keep_alive: bool) -> Shed | None:
        """Return the refusal of the request in `scope`, already recorded, or None to pass the request on. Requests that
        need full handling are passed on."""
        runtime = self._parts.runtime
        if runtime is None or scope["path"] not in self._endpoints:
            return None
        head = dict(scope["headers"])
        route, task = self._endpoints[scope["path"]]
        if self._needs_full_handling(scope, head) or not route.takes_query(scope["query_string"]):
            return None
        requested = _requested_model(scope["query_string"])
        cards = runtime.cards
        model = next(iter(cards)) if requested is None else requested
        card = cards.get(model)
        if card is None or (task == CLASSIFY.task and not card.classes):
            return None
        overload = runtime.refusal(model, task)
        if overload is None:
            return None
        # The metrics are labelled with the route.
        scope["route"] = route
        record = self._observer.begin(scope)
        record.start_inference(model, task, 1)
        row = row_of(overload)
        record.problem, record.status = row.slug, row.status
        self._parts.metrics.rejected(row.reason)
        last = not keep_alive or not body_is_short(head.get(b"content-length"), chunked=b"transfer-encoding" in head)
        headers = {**usual_headers, **problem_headers(overload), **self._observer.headers(scope, record)}
        answer = problem_bytes(row, str(overload), record.request_id, headers, last=last)
        self._observer.end(scope, record, shed=True)
        return Shed(answer, last)

    def _needs_full_handling(self, scope: Scope, head: Mapping[bytes, bytes]) -> bool:
        # `head` has one value per name. The application decides which of several headers counts.
        if len(head) < len(scope["headers"]) or b"if-match" in head:
            return True
        if b"content-encoding" in head or head.get(b"content-type", b"").lower().startswith(_OF_SEVERAL_IMAGES):
            return True
        if (self._cross_origin and b"origin" in head) or not self._hosts.allow(scope):
            return True
        if not self._parts.keys:
            return False
        try:
            authorize(Request(scope), self._parts.keys, "inference", self._parts.trusted_hosts)
        except RequestError:
            return True
        return False


def _requested_model(query_string: bytes) -> str | None:
    # Names may be percent-encoded.
    if not query_string:
        return None
    return dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)).get("model")
