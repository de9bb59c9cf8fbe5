"""One table: which error is which answer. RFC 9457 problem details; `type` is stable, programs may decide by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.interface import errors

CONTENT_TYPE = "application/problem+json"

# Nobody is there to read it; the status is for logs and metrics (nginx's number for the same).
CLIENT_GONE_STATUS = 499


class Problem(BaseModel):
    """RFC 9457 problem details. `type` is stable: programs may decide by it."""

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
    """The request itself is at fault, not an image in it."""


class BodyTooLargeError(RequestError):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request's body is larger than {limit_bytes} bytes.")


class SlowBodyError(RequestError):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"The request's body had not arrived after {timeout_s:g} s.")


class TooMuchAtOnceError(RequestError):
    """All callers together send more than is kept; `retry_after_s` seconds later there may be room."""

    retry_after_s = 1

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The bodies that are being received or waiting fill {limit_bytes} bytes.")


class MalformedMultipartError(RequestError):
    def __init__(self, reason: str) -> None:
        super().__init__(f"The multipart body cannot be read: {reason}")


class ContentEncodingError(RequestError):
    """The body is compressed: what it would become is not known before it has."""

    # What is taken: bodies as they are.
    accepted = "identity"

    def __init__(self, codings: str) -> None:
        super().__init__(f"Bodies are read as they are: send this one without Content-Encoding: {codings[:100]}.")


class TooManyImagesError(RequestError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"The request has more than {limit} images.")


class NoImagesError(RequestError):
    def __init__(self) -> None:
        super().__init__("The multipart body has no file in it.")


class ClientDisconnectedError(RequestError):
    def __init__(self) -> None:
        super().__init__("The caller has gone.")


class DebugDisabledError(RequestError):
    def __init__(self) -> None:
        super().__init__("Debug endpoints are switched off (GRADLESS_DEBUG_ENDPOINTS).")


class NoSearchIndexError(RequestError):
    """`indexed`: the model whose vectors there is an index of, where there is one."""

    def __init__(self, indexed: str | None = None) -> None:
        super().__init__(
            "There is no search index here (GRADLESS_SEARCH_INDEX)."
            if indexed is None
            else f"The search index here is of {indexed}: other models' vectors cannot be compared with it."
        )


class UnauthorizedError(RequestError):
    """Who asks is not known. `known=False`: there was a key, which is none."""

    def __init__(self, message: str, *, known: bool = True) -> None:
        super().__init__(message)
        self.challenge = "Bearer" if known else 'Bearer error="invalid_token"'


class ForbiddenError(RequestError):
    """Who asks may not."""


class FingerprintMismatchError(RequestError):
    def __init__(self, served: str) -> None:
        super().__init__(f"What is served has the fingerprint {served}: its vectors are of another kind.")


class NotReadyError(RequestError):
    def __init__(self) -> None:
        super().__init__("The models are not warmed up, or the service is stopping.")


@dataclass(frozen=True, slots=True)
class Row:
    """How an error is answered, and as what it counts among refusals."""

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
        415, "unsupported-format", "Not an image of a format read here", "unsupported_type"
    ),
    errors.UndecodableImageError: Row(422, "undecodable-image", "The image cannot be decoded", "bad_image"),
    errors.TooManyPixelsError: Row(422, "too-many-pixels", "The image has too many pixels", "too_many_pixels"),
    errors.TooElongatedError: Row(422, "too-elongated", "The image is too long and thin", "bad_image"),
    errors.TooCostlyError: Row(422, "too-costly", "The image is too expensive to decode", "too_costly"),
    errors.NotFiniteError: Row(422, "not-finite", "The network gave no finite numbers for this image", "bad_image"),
    errors.OverloadedError: Row(429, "overloaded", "The service is full", "queue_full"),
    errors.DecodersBusyError: Row(429, "decoders-busy", "Too many expensive images wait", "queue_full"),
    errors.DrainingError: Row(503, "draining", "The service is stopping", "draining"),
    errors.DeadlineExceededError: Row(504, "deadline-exceeded", "No answer in time", "deadline"),
    errors.ModelDownError: Row(503, "model-down", "The model is being started anew", "model_down"),
    errors.ModelGoneError: Row(503, "model-gone", "The model was replaced or unloaded", "model_down"),
    errors.OutOfMemoryError: Row(503, "out-of-memory", "The device has no memory left", "out_of_memory"),
    errors.UnknownModelError: Row(404, "unknown-model", "No such model is served"),
    errors.NoClassesError: Row(422, "no-classes", "The model has no classes"),
    errors.ModelNotLoadedError: Row(422, "model-not-loaded", "The model cannot be loaded"),
    errors.NoRoomError: Row(503, "no-room", "There is no memory for another model"),
    errors.LoadTimeoutError: Row(503, "load-timeout", "The model did not load in time"),
    errors.ModelChangingError: Row(409, "model-changing", "A model is being loaded or unloaded"),
    errors.TooManyModelsError: Row(409, "too-many-models", "No more models may be served"),
    errors.LastModelError: Row(409, "last-model", "The last model stays"),
    errors.ForwardError: Row(500, "internal-error", "Something went wrong here"),
    errors.ComparisonRunningError: Row(409, "comparison-running", "A comparison is running"),
    errors.ComparisonTooLargeError: Row(422, "comparison-too-large", "The comparison would need too much"),
    BodyTooLargeError: Row(413, "body-too-large", "The request is too large", "too_large"),
    SlowBodyError: Row(408, "slow-body", "The request did not arrive in time", "slow_body"),
    TooMuchAtOnceError: Row(429, "too-much-at-once", "Too much is being sent at once", "queue_full"),
    MalformedMultipartError: Row(400, "malformed-multipart", "The multipart body cannot be read"),
    ContentEncodingError: Row(415, "unsupported-content-encoding", "The body has a content coding", "unsupported_type"),
    TooManyImagesError: Row(413, "too-many-images", "The request has too many images", "too_large"),
    NoImagesError: Row(422, "no-images", "The request has no image"),
    ClientDisconnectedError: Row(CLIENT_GONE_STATUS, "caller-gone", "The caller has gone"),
    UnauthorizedError: Row(401, "unauthorized", "An API key is needed", "auth"),
    ForbiddenError: Row(403, "forbidden", "This caller may not do that", "auth"),
    FingerprintMismatchError: Row(412, "fingerprint-mismatch", "The model is not the one that was asked for"),
    NoSearchIndexError: Row(404, "no-search-index", "There is nothing to search"),
    DebugDisabledError: Row(404, "debug-disabled", "Debug endpoints are off"),
    NotReadyError: Row(503, "not-ready", "The service is not ready"),
}

MALFORMED_REQUEST = Row(400, "malformed-request", "This is not an HTTP request", "malformed")
HEADERS_TOO_LARGE = Row(431, "headers-too-large", "The request's headers are too large", "too_large")
TOO_FINELY_CHUNKED = Row(400, "too-finely-chunked", "The body comes in too small chunks", "malformed")
UNKNOWN_HOST = Row(421, "unknown-host", "There is no such host here")
INVALID_PARAMETER = Row(422, "invalid-parameter", "A parameter is not valid")
NOT_FOUND = Row(404, "not-found", "There is nothing here")
METHOD_NOT_ALLOWED = Row(405, "method-not-allowed", "This resource does not take that method")
INTERNAL_ERROR = Row(500, "internal-error", "Something went wrong here")


def row_of(error: Exception) -> Row:
    """The table's row for `error`; an error of no row is ours, and its detail nobody's business."""
    return TABLE.get(type(error), INTERNAL_ERROR)
