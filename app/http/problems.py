"""The table of problems (RFC 9457): which error has which status, type and title. Types are stable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from models.interface import errors
from models.interface.errors import AtCapacityError, ImageError

CONTENT_TYPE = "application/problem+json"

# For logs and metrics only, because the client has disconnected. nginx uses the same number.
CLIENT_GONE_STATUS = 499


class Problem(BaseModel):
    """RFC 9457 problem details. Clients may rely on `type`, which is stable."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(examples=["urn:gradless:problem:undecodable-image"])
    title: str = Field(examples=["The image cannot be decoded"])
    status: int = Field(ge=400, le=599, examples=[422])
    detail: str | None = None
    request_id: str | None = None


Reason = Literal[
    "queue_full",
    "deadline",
    "too_large",
    "too_many_pixels",
    "too_costly",
    "bad_image",
    "unsupported_type",
    "draining",
    "slow_body",
    "malformed",
    "model_down",
    "out_of_memory",
    "auth",
]


class RequestError(Exception):
    """The request itself is wrong, not an image in it."""


class BodyTooLargeError(RequestError):
    def __init__(self, limit_bytes: int, advice: str = "") -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes.{advice and ' '}{advice}")


class SlowBodyError(RequestError):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"The request body had not arrived after {timeout_s:g} s.")


class MalformedMultipartError(RequestError):
    def __init__(self, reason: str) -> None:
        super().__init__(f"The multipart body cannot be read: {reason}")


IDENTITY = frozenset({"identity"})


class ContentEncodingError(RequestError):
    """The body is compressed otherwise than with one of the codings `accepted` (RFC 9110, section 12.5.3). Native
    routes accept none: the size of a body is to be known in advance."""

    def __init__(self, codings: str, accepted: frozenset[str] = IDENTITY) -> None:
        self.accepted = ", ".join(sorted(accepted))
        super().__init__(
            f"Compressed bodies are not accepted: send this one without Content-Encoding: {codings[:100]}."
            if accepted == IDENTITY
            else f"The Content-Encoding {codings[:100]} is not accepted; use one of {self.accepted}."
        )


class TooManyImagesError(RequestError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"The request has more than {limit} images.")


class NoImagesError(RequestError):
    def __init__(self, message: str = "The multipart body contains no file.") -> None:
        super().__init__(message)


class InvalidInputError(RequestError):
    """The body is not what the protocol expects."""


class NotOfferedError(RequestError):
    """A part of the client's protocol that this service does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(f"This service has no {what}.")


class UnknownVersionError(RequestError):
    def __init__(self, model: str, version: str, served: int) -> None:
        super().__init__(f"{model} has no version {version[:100]!r} here; 1 is always the served one, now {served}.")


class FaultyImageError(Exception):
    """A request is refused as a whole for the fault of one image. `item` says which one."""

    def __init__(self, item: str, fault: ImageError) -> None:
        super().__init__(f"{item}: {fault}")
        self.fault = fault


class ClientDisconnectedError(RequestError):
    def __init__(self) -> None:
        super().__init__("The client disconnected.")


class DebugDisabledError(RequestError):
    def __init__(self) -> None:
        super().__init__("Debug endpoints are disabled (GRADLESS_DEBUG_ENDPOINTS).")


class NoSearchIndexError(RequestError):
    """There is no index, or its vectors come from another model, `indexed`."""

    def __init__(self, indexed: str | None = None) -> None:
        super().__init__(
            "This service has no search index (GRADLESS_SEARCH_INDEX)."
            if indexed is None
            else f"The search index was built with {indexed}: vectors of other models cannot be compared with it."
        )


class UnauthorizedError(RequestError):
    """The request has no valid API key. `known=False`: it has a key that is unknown."""

    def __init__(self, message: str, *, known: bool = True) -> None:
        super().__init__(message)
        self.challenge = "Bearer" if known else 'Bearer error="invalid_token"'


class ForbiddenError(RequestError):
    """The client lacks the right that the request needs."""


class FingerprintMismatchError(RequestError):
    def __init__(self, served: str) -> None:
        super().__init__(
            f"The served model has the fingerprint {served}: its vectors cannot be compared with the requested ones."
        )


class NotReadyError(RequestError):
    def __init__(self) -> None:
        super().__init__("The models are not warmed up, or the service is shutting down.")


@dataclass(frozen=True, slots=True)
class Row:
    """One type of problem. `reason` is its label in the metric of refusals."""

    status: int
    slug: str
    title: str
    reason: Reason | None = None

    @property
    def type(self) -> str:
        return f"urn:gradless:problem:{self.slug}"


TABLE: dict[type[Exception], Row] = {
    errors.EmptyImageError: Row(422, "empty-image", "The image is empty", "bad_image"),
    errors.ImageTooLargeError: Row(413, "image-too-large", "The image file is too large", "too_large"),
    errors.UnsupportedFormatError: Row(
        415, "unsupported-format", "The image format is not supported", "unsupported_type"
    ),
    errors.UndecodableImageError: Row(422, "undecodable-image", "The image cannot be decoded", "bad_image"),
    errors.TooManyPixelsError: Row(422, "too-many-pixels", "The image has too many pixels", "too_many_pixels"),
    errors.TooElongatedError: Row(422, "too-elongated", "The aspect ratio of the image is too high", "bad_image"),
    errors.TooCostlyError: Row(422, "too-costly", "The image is too expensive to decode", "too_costly"),
    errors.UnfitPixelsError: Row(422, "unfit-pixels", "The pixels do not fit the network", "bad_image"),
    errors.NotFiniteError: Row(422, "not-finite", "The model output for this image is not finite", "bad_image"),
    errors.OverloadedError: Row(429, "overloaded", "The service is at capacity", "queue_full"),
    errors.DecodersBusyError: Row(429, "decoders-busy", "Too many expensive images are waiting", "queue_full"),
    errors.BodyMemoryFullError: Row(429, "too-much-at-once", "Too many bytes are being received at once", "queue_full"),
    errors.TooManyCallsError: Row(429, "too-many-calls", "Too many calls of gRPC are unfinished", "queue_full"),
    errors.DrainingError: Row(503, "draining", "The service is shutting down", "draining"),
    errors.DeadlineExceededError: Row(504, "deadline-exceeded", "The deadline was exceeded", "deadline"),
    errors.ModelDownError: Row(503, "model-down", "The model is being restarted", "model_down"),
    errors.ModelGoneError: Row(503, "model-gone", "The model was replaced or unloaded", "model_down"),
    errors.OutOfMemoryError: Row(503, "out-of-memory", "The device is out of memory", "out_of_memory"),
    errors.UnknownModelError: Row(404, "unknown-model", "No such model is served"),
    UnknownVersionError: Row(404, "unknown-version", "No such version of the model is served"),
    errors.NoClassesError: Row(422, "no-classes", "The model has no classes"),
    errors.ModelNotLoadedError: Row(422, "model-not-loaded", "The model cannot be loaded"),
    errors.NoRoomError: Row(503, "no-room", "There is not enough memory for another model"),
    errors.LoadTimeoutError: Row(503, "load-timeout", "The model did not load in time"),
    errors.ModelChangingError: Row(409, "model-changing", "A model is being loaded or unloaded"),
    errors.TooManyModelsError: Row(409, "too-many-models", "The maximum number of models is loaded"),
    errors.LastModelError: Row(409, "last-model", "The last model cannot be unloaded"),
    errors.ForwardError: Row(500, "internal-error", "Internal error"),
    errors.ComparisonRunningError: Row(409, "comparison-running", "A comparison is running"),
    errors.ComparisonTooLargeError: Row(422, "comparison-too-large", "The comparison is too large"),
    BodyTooLargeError: Row(413, "body-too-large", "The request body is too large", "too_large"),
    SlowBodyError: Row(408, "slow-body", "The request did not arrive in time", "slow_body"),
    MalformedMultipartError: Row(400, "malformed-multipart", "The multipart body is malformed"),
    ContentEncodingError: Row(
        415, "unsupported-content-encoding", "The content encoding is not supported", "unsupported_type"
    ),
    TooManyImagesError: Row(413, "too-many-images", "The request has too many images", "too_large"),
    NoImagesError: Row(422, "no-images", "The request has no image"),
    InvalidInputError: Row(400, "invalid-input", "The body is not what is expected"),
    NotOfferedError: Row(501, "not-offered", "The service does not have this part of the protocol"),
    ClientDisconnectedError: Row(CLIENT_GONE_STATUS, "client-disconnected", "The client disconnected"),
    UnauthorizedError: Row(401, "unauthorized", "An API key is needed", "auth"),
    ForbiddenError: Row(403, "forbidden", "The client lacks the required right", "auth"),
    FingerprintMismatchError: Row(412, "fingerprint-mismatch", "The served model has another fingerprint"),
    NoSearchIndexError: Row(404, "no-search-index", "There is no search index for this model"),
    DebugDisabledError: Row(404, "debug-disabled", "Debug endpoints are disabled"),
    NotReadyError: Row(503, "not-ready", "The service is not ready"),
}

MALFORMED_REQUEST = Row(400, "malformed-request", "The HTTP request is malformed", "malformed")
HEADERS_TOO_LARGE = Row(431, "headers-too-large", "The request headers are too large", "too_large")
TOO_FINELY_CHUNKED = Row(400, "too-finely-chunked", "The chunks of the body are too small", "malformed")
UNKNOWN_HOST = Row(421, "unknown-host", "The host is not served here")
INVALID_PARAMETER = Row(422, "invalid-parameter", "A parameter is invalid")
NOT_FOUND = Row(404, "not-found", "The resource does not exist")
METHOD_NOT_ALLOWED = Row(405, "method-not-allowed", "The method is not allowed for this resource")
INTERNAL_ERROR = Row(500, "internal-error", "Internal error")


def row_of(error: Exception) -> Row:
    """Return the row of `error`. An error without one is an internal error, whose detail is not sent."""
    if isinstance(error, FaultyImageError):
        error = error.fault
    return TABLE.get(type(error), INTERNAL_ERROR)


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
