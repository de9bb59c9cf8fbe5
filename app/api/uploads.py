"""Read the images of a request: the body itself, the files of a multipart body, or JSON that has them as text.

Sizes are counted while the body is received, regardless of Content-Length. Bodies are kept in memory, never on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from app.api.dependencies import settings_of
from app.api.file_parts import PIECE_BYTES, FileParts
from app.http.problems import (
    IDENTITY,
    BodyTooLargeError,
    ClientDisconnectedError,
    ContentEncodingError,
    MalformedMultipartError,
    NoImagesError,
    SlowBodyError,
    TooManyImagesError,
)
from app.observability.request_record import record_of
from app.settings import Settings
from models.interface import errors
from models.interface.errors import ImageTooLargeError
from models.interface.turns import in_turns

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)

BODY_ERRORS = (ContentEncodingError, SlowBodyError, errors.BodyMemoryFullError, BodyTooLargeError)

# The errors of a body with images, or of an image in it.
UPLOAD_ERRORS: tuple[type[Exception], ...] = (
    *BODY_ERRORS,
    MalformedMultipartError,
    TooManyImagesError,
    NoImagesError,
    errors.ImageTooLargeError,
    errors.UnsupportedFormatError,
    errors.EmptyImageError,
    errors.UndecodableImageError,
    errors.TooManyPixelsError,
    errors.TooElongatedError,
    errors.TooCostlyError,
)

_SMALL_BODY_BYTES = 64 * 1024

# Digits of 2**64.
MAX_SIZE_DIGITS = 20

# Longest value of Content-Type that is read: its parser takes a microsecond for each character.
_MAX_CONTENT_TYPE_CHARACTERS = 1024

WHITE_SPACE = b" \t\r\n"
# No image format begins so.
_JSON_BEGINS = (b"{", b"[")


@dataclass(frozen=True, slots=True)
class Received:
    """A body: JSON that is not parsed yet, or else files in order."""

    json: bytes | None
    files: Sequence[bytes | ImageTooLargeError] = ()


def content_type_of(headers: Headers) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the media type in lower case and its parameters; none of an absent or too long Content-Type."""
    stated = headers.get("content-type", "")
    return parse_options_header(stated if len(stated) <= _MAX_CONTENT_TYPE_CHARACTERS else "")


async def read_images(request: Request) -> Sequence[bytes | ImageTooLargeError]:
    """Return the encoded images of `request` in order. Among several, one that is too large is replaced by its error.

    Raises the request errors of app/http/problems.py, and ImageTooLargeError for a single image.
    """
    return (await _timed(request, _read(request))).files


async def read_json_or_images(request: Request, *, every_part: bool = True) -> Received:
    """Return the body of `request`: JSON if it begins so, else one image file, or several as multipart parts. With
    `every_part` a part is an image even if it has no file name and does not begin as an image does.

    Raises as read_images does.
    """
    return await _timed(request, _read(request, or_json=True, every_part=every_part))


async def read_body(request: Request, codings: frozenset[str] = IDENTITY, limit_bytes: int | None = None) -> bytes:
    """Return the body of `request` as it was sent, of at most `limit_bytes`, or else GRADLESS_MAX_REQUEST_BYTES.
    `codings` are the values of Content-Encoding that the caller decodes.

    Raises ContentEncodingError, BodyTooLargeError, SlowBodyError, BodyMemoryFullError, ClientDisconnectedError.
    """
    limit_bytes = limit_bytes or settings_of(request).max_request_bytes
    return await _timed(request, _whole(request, limit_bytes, codings))


async def read_json(request: Request, schema: type[S]) -> S | None:
    """Return the parameters in a JSON body of at most 64 KiB, or None without a body.

    Raises ContentEncodingError, BodyTooLargeError, SlowBodyError, ClientDisconnectedError, RequestValidationError.
    """
    body = await _in_time(request, _whole(request, _SMALL_BODY_BYTES))
    if not body:
        return None
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        # A syntax error has no location.
        found = [{**each, "loc": ("body", *(each["loc"] or ("body",)))} for each in error.errors(include_context=False)]
        raise RequestValidationError(found) from None


async def _timed(request: Request, reading: Awaitable[T]) -> T:
    """As `_in_time`, and record how long it took."""
    started_at = perf_counter()
    read = await _in_time(request, reading)
    record_of(request.scope).read_seconds = perf_counter() - started_at
    return read


async def _in_time(request: Request, reading: Awaitable[T]) -> T:
    """Await `reading`, which reads the body to its end. Raises SlowBodyError and ClientDisconnectedError."""
    timeout_s = settings_of(request).read_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            read = await reading
    except TimeoutError:
        raise SlowBodyError(timeout_s) from None
    except ClientDisconnect:
        raise ClientDisconnectedError from None
    record_of(request.scope).body_read = True
    return read


async def _read(request: Request, *, or_json: bool = False, every_part: bool = False) -> Received:
    settings = settings_of(request)
    content_type, options = content_type_of(request.headers)
    if content_type == b"multipart/form-data":
        limits = {"max_files": settings.max_images_per_request, "max_file_bytes": settings.max_image_bytes}
        with closing(FileParts(options.get(b"boundary", b""), every_part=every_part, **limits)) as parts:
            async for chunk in _counted(request, settings.max_request_bytes):
                pieces = (chunk[start : start + PIECE_BYTES] for start in range(0, len(chunk), PIECE_BYTES))
                await in_turns(parts.feed, pieces)
            files = parts.files()
        if len(files) == 1 and isinstance(files[0], ImageTooLargeError):
            raise files[0]
        return Received(None, files)
    return await _file(request, settings, or_json=or_json)


async def _file(request: Request, settings: Settings, *, or_json: bool) -> Received:
    # The content decides, not Content-Type: curl sends every body as a form by default.
    json_begins = _JSON_BEGINS if or_json else ()
    received = 0
    chunks: list[bytes] = []
    begins = b""
    async for chunk in _counted(request, settings.max_request_bytes):
        received += len(chunk)
        begins = begins or chunk.lstrip(WHITE_SPACE)[:1]
        if begins not in json_begins and received > settings.max_image_bytes:
            raise ImageTooLargeError(settings.max_image_bytes)
        chunks.append(chunk)
    body = b"".join(chunks)
    return Received(body) if begins in json_begins else Received(None, [body])


async def _whole(request: Request, limit_bytes: int, codings: frozenset[str] = IDENTITY) -> bytes:
    return b"".join([chunk async for chunk in _counted(request, limit_bytes, codings)])


async def _counted(request: Request, limit_bytes: int, accepted: frozenset[str] = IDENTITY) -> AsyncIterator[bytes]:
    codings = ",".join(request.headers.getlist("content-encoding"))
    if codings and not all(coding.strip().lower() in {"", *accepted} for coding in codings.split(",")):
        raise ContentEncodingError(codings, accepted)
    declared = request.headers.get("content-length", "")
    # int() raises ValueError for more than 4300 digits.
    if declared.isdecimal() and (len(declared) > MAX_SIZE_DIGITS or int(declared) > limit_bytes):
        raise BodyTooLargeError(limit_bytes)
    received = 0
    record = record_of(request.scope)
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        record.reserve_body_bytes(len(chunk))
        yield chunk
