"""What handlers ask for by type: the runtime, the metrics, the images of their request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, cast

from fastapi import Depends, Header, Query, Request

from app.api.uploads import read_images
from app.http.allowed_hosts import AllowedHosts
from app.http.problems import DebugDisabledError, FingerprintMismatchError
from app.observability.metrics import Metrics, SharedExposition
from app.security.api_keys import Keys, Right, authorize
from app.settings import Settings
from models.interface.errors import DrainingError, ImageTooLargeError, NoClassesError, StartError, UnknownModelError
from models.interface.results import ModelCard
from models.interface.runtime import Runtime
from models.search.index import SearchIndex

# After the time to drain, threads have so long to end.
_LAST_S = 1.0


@dataclass(slots=True)
class Parts:
    """What an application is made of: the one object on app.state. `runtime` is None until started; `failure` is why
    the process ends without success; `drained_at`, once it drains, until when accepted requests have time
    (`perf_counter`); `scraped`, what /metrics shows: where several processes serve, those of all."""

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

    def left_to_close_s(self) -> float:
        """How long models may take to end, after the last answer."""
        whole_s = self.settings.drain_timeout_s
        if self.drained_at is None:
            return whole_s
        # Requests may have taken all of the time. Then threads have nothing to do, and end at once, or hang.
        return max(self.drained_at - perf_counter(), min(whole_s, _LAST_S))


def parts_of(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


# Coroutines although they wait for nothing: FastAPI would send plain functions through a thread pool, one by one.
async def _runtime(request: Request) -> Runtime:
    runtime = parts_of(request).runtime
    if runtime is None:
        raise DrainingError
    return runtime


async def _metrics(request: Request) -> Metrics:
    return parts_of(request).metrics


TheMetrics = Annotated[Metrics, Depends(_metrics)]
TheRuntime = Annotated[Runtime, Depends(_runtime)]


def card_named(runtime: Runtime, name: str | None) -> ModelCard:
    """The card of a served model, the default's for None. Raises UnknownModelError."""
    cards = runtime.cards
    if name is None:
        return next(iter(cards.values()))
    if name not in cards:
        raise UnknownModelError(name, list(cards))
    return cards[name]


ModelName = Annotated[str | None, Query(description="a served model's name; the default without it")]


@dataclass(frozen=True, slots=True)
class Upload:
    """A request with images: all of it that has been checked and read before a handler begins. `asked`: the model that
    it names, if it names one; `model`: who that was before the body was read. Of several images, each that is too large
    is its error."""

    request: Request
    runtime: Runtime
    metrics: Metrics
    asked: str | None
    model: ModelCard
    pinned: str | None
    images: Sequence[bytes | ImageTooLargeError]

    def check_answer_of(self, fingerprint: str) -> None:
        """Raises FingerprintMismatchError where that is not what was asked for: another version of the model took over
        while the body was read."""
        if self.pinned is not None and not _matches(self.pinned, fingerprint):
            raise FingerprintMismatchError(fingerprint)


Pinned = Annotated[
    str | None,
    Header(alias="If-Match", description="a fingerprint: whatever else is served, the answer is 412"),
]


async def upload_of(request: Request, model: ModelName = None, if_match: Pinned = None) -> Upload:
    """The images of `request`, read. Raises UnauthorizedError, ForbiddenError, DrainingError, UnknownModelError,
    FingerprintMismatchError, and what read_images raises."""
    return await _read(request, model, if_match, classes=False)


async def _read(request: Request, model: str | None, if_match: str | None, *, classes: bool) -> Upload:
    parts = parts_of(request)
    _authorize(request, "inference")
    runtime = await _runtime(request)
    # Before the body is read: a caller who asks for a model that is not there need not send it.
    card = card_named(runtime, model)
    if runtime.draining:
        raise DrainingError
    if if_match is not None and not _matches(if_match, card.fingerprint):
        raise FingerprintMismatchError(card.fingerprint)
    if classes and not card.classes:
        raise NoClassesError(card.name)
    images = await read_images(request, parts.settings)
    return Upload(request, runtime, parts.metrics, model, card, if_match, images)


async def classifiable(request: Request, model: ModelName = None, if_match: Pinned = None) -> Upload:
    """As `upload_of`, for a model that has classes. Raises NoClassesError, also before the body is read."""
    return await _read(request, model, if_match, classes=True)


ImageUpload = Annotated[Upload, Depends(upload_of)]
ClassifiableUpload = Annotated[Upload, Depends(classifiable)]


def _matches(if_match: str, fingerprint: str) -> bool:
    """As RFC 9110 compares entity tags; the quotes may be left out."""
    tags = {tag.strip().strip('"') for tag in if_match.split(",")}
    return fingerprint in tags or "*" in tags


async def debug_allowed(request: Request) -> None:
    """For routes that exist only where GRADLESS_DEBUG_ENDPOINTS is on, for callers of this machine or with that right.

    Raises DebugDisabledError, UnauthorizedError, ForbiddenError.
    """
    parts = parts_of(request)
    if not parts.settings.debug_endpoints:
        raise DebugDisabledError
    _authorize(request, "debug")


async def inference_allowed(request: Request) -> None:
    """Raises UnauthorizedError, ForbiddenError."""
    _authorize(request, "inference")


async def admin_allowed(request: Request) -> None:
    """Raises UnauthorizedError, ForbiddenError."""
    _authorize(request, "admin")


async def metrics_allowed(request: Request) -> None:
    """Raises UnauthorizedError, ForbiddenError."""
    _authorize(request, "metrics")


def _authorize(request: Request, right: Right) -> None:
    parts = parts_of(request)
    authorize(request, parts.keys, right, parts.trusted_hosts)
