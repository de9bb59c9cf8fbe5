"""FastAPI dependencies of the routes: the runtime, authorization, and the images of a request."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request

from app.http.api_keys import Keys, Right, authorize
from app.http.hosts import AllowedHosts
from app.http.problems import DebugDisabledError, FingerprintMismatchError, ForbiddenError, NotReadyError
from app.observability.metrics import Metrics, SharedExposition
from app.settings import Settings
from models.interface.errors import DrainingError, StartError, UnknownModelError
from models.interface.results import ModelCard
from models.interface.runtime import Runtime
from models.search.index import SearchIndex

# Minimum time for threads to end, even if the drain timeout has expired.
_MIN_CLOSE_S = 1.0

# Ranges of an Accept header that are read.
_MAX_RANGES = 32


@dataclass(slots=True)
class Parts:
    """The parts of an application: the one object on app.state.

    `runtime` is None until the application has started. `failure` is the reason why the process exits with an error.
    `drained_at` (`perf_counter`) is the deadline of accepted requests once draining has begun. `scraped` is the
    exposition of /metrics, which covers all processes. `created_at` (UNIX seconds) is when this object was made.
    `fixed_models` is the reason why models cannot be loaded or unloaded, if they cannot.
    """

    settings: Settings
    metrics: Metrics
    keys: Keys
    trusted_hosts: AllowedHosts
    scraped: SharedExposition
    runtime: Runtime | None = None
    search_index: SearchIndex | None = None
    start_error: StartError | None = None
    failure: str | None = None
    drained_at: float | None = None
    fixed_models: str | None = None
    created_at: int = field(default_factory=lambda: int(time()))

    @property
    def ready(self) -> bool:
        """True if all models are warmed up and work, and the service is not draining."""
        return self.runtime is not None and self.runtime.ready

    def left_to_close_s(self) -> float:
        """Return the time for models to shut down after the last response."""
        drain_timeout_s = self.settings.drain_timeout_s
        if self.drained_at is None:
            return drain_timeout_s
        # If requests used up the drain timeout, idle threads still need a moment to end.
        return max(self.drained_at - perf_counter(), min(drain_timeout_s, _MIN_CLOSE_S))


def parts_of(request: Request) -> Parts:
    parts: Parts = request.scope["app"].state.parts
    return parts


def settings_of(request: Request) -> Settings:
    return parts_of(request).settings


def runtime_of(request: Request) -> Runtime:
    """Return the runtime. Raises DrainingError before the start and after the end of the application."""
    runtime = parts_of(request).runtime
    if runtime is None:
        raise DrainingError
    return runtime


def check_ready(request: Request) -> None:
    """Raise NotReadyError unless the service is ready."""
    if not parts_of(request).ready:
        raise NotReadyError


# Coroutines although they never wait: FastAPI runs plain functions in a thread pool.
async def _runtime(request: Request) -> Runtime:
    return runtime_of(request)


TheRuntime = Annotated[Runtime, Depends(_runtime)]


def card_named(runtime: Runtime, name: str | None) -> ModelCard:
    """Return the card of a served model; None is the default model. Raises UnknownModelError."""
    cards = runtime.cards
    if name is None:
        return next(iter(cards.values()))
    if name not in cards:
        raise UnknownModelError(name, list(cards))
    return cards[name]


@dataclass(frozen=True, slots=True)
class Upload:
    """A request with images that has been authorized and checked. Its body has not been read.

    `requested_model` is the model that the request names, if any; `model` is its card before the body is read.
    `pinned` is the value of If-Match, `version` the version in the path.
    """

    request: Request
    runtime: Runtime
    requested_model: str | None
    model: ModelCard
    pinned: str | None
    version: str | None = None

    def check_answer_of(self, fingerprint: str) -> None:
        """Raise FingerprintMismatchError if the request is for another version than the one with `fingerprint`."""
        if self.pinned is None:
            return
        # Entity tags (RFC 9110, section 13.1.1); the quotes are optional.
        tags = {tag.strip().strip('"') for tag in self.pinned.split(",")}
        if fingerprint not in tags and "*" not in tags:
            raise FingerprintMismatchError(fingerprint)


ModelName = Annotated[str | None, Query(description="name of a served model; without it, the default model")]
Pinned = Annotated[
    str | None,
    Header(alias="If-Match", description="a fingerprint; if the served model has another, the response is 412"),
]


async def upload_of(request: Request, model: ModelName = None, if_match: Pinned = None) -> Upload:
    """Check a request with images before its body is read.

    Raises UnauthorizedError, ForbiddenError, DrainingError, UnknownModelError, FingerprintMismatchError.
    """
    parts = parts_of(request)
    authorize(request, parts.keys, "inference", parts.trusted_hosts)
    runtime = runtime_of(request)
    card = card_named(runtime, model)
    if runtime.draining:
        raise DrainingError
    upload = Upload(request, runtime, model, card, if_match)
    upload.check_answer_of(card.fingerprint)
    return upload


ImageUpload = Annotated[Upload, Depends(upload_of)]


def accepts(request: Request, media_type: str) -> bool:
    """Return True if the first 32 ranges of the Accept header name `media_type` itself, not a wildcard, with a weight
    above 0."""
    for media_range in request.headers.get("accept", "").lower().split(",", _MAX_RANGES)[:_MAX_RANGES]:
        named, *parameters = (part.strip() for part in media_range.split(";"))
        if named == media_type:
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def _requires(right: Right) -> Callable[[Request], Coroutine[Any, Any, None]]:
    """Return a dependency that raises UnauthorizedError or ForbiddenError without `right`."""

    async def allowed(request: Request) -> None:
        parts = parts_of(request)
        authorize(request, parts.keys, right, parts.trusted_hosts)

    return allowed


inference_allowed = _requires("inference")
metrics_allowed = _requires("metrics")
_debug_right = _requires("debug")
_admin_right = _requires("admin")


async def admin_allowed(request: Request) -> None:
    """Raise UnauthorizedError or ForbiddenError unless the client may load and unload models."""
    fixed = parts_of(request).fixed_models
    if fixed is not None:
        raise ForbiddenError(fixed)
    await _admin_right(request)


async def debug_allowed(request: Request) -> None:
    """Allow requests from this machine, or with the right `debug`, if GRADLESS_DEBUG_ENDPOINTS is on.

    Raises DebugDisabledError, UnauthorizedError, ForbiddenError.
    """
    if not settings_of(request).debug_endpoints:
        raise DebugDisabledError
    await _debug_right(request)
