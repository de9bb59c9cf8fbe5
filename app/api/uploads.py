"""The images of a request: a raw body, or the files of a multipart one. Counted as they come, whatever the
headers claim, and kept in memory: nothing a caller sends is written to disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import closing
from time import perf_counter
from typing import TypeVar

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from app.api.file_parts import FileParts
from app.http.problems import (
    BodyTooLargeError,
    ClientDisconnectedError,
    ContentEncodingError,
    MalformedMultipartError,
    NoImagesError,
    SlowBodyError,
    TooManyImagesError,
    TooMuchAtOnceError,
)
from app.observability.request_record import record_of
from app.settings import Settings
from models.interface import errors
from models.interface.errors import ImageTooLargeError

T = TypeVar("T")

# What is wrong with a body, or with an image in it: of every route that takes images.
UPLOAD_ERRORS: tuple[type[Exception], ...] = (
    ContentEncodingError,
    MalformedMultipartError,
    SlowBodyError,
    TooMuchAtOnceError,
    BodyTooLargeError,
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

# Parameters as JSON, with room for whitespace.
_SMALL_BODY_BYTES = 64 * 1024

# Digits of 2**64.
_LONGEST_SIZE = 20


async def read_images(request: Request, settings: Settings) -> Sequence[bytes | ImageTooLargeError]:
    """The encoded images of `request`, one or more, in order; of several, one that is too large has its error in its
    place.

    Raises the request errors of app/http/problems.py, and ImageTooLargeError.
    """
    started_at = perf_counter()
    images = await _in_time(request, settings.read_timeout_s, _read(request, settings))
    record_of(request.scope).read_seconds = perf_counter() - started_at
    return images


async def read_small(request: Request, *, timeout_s: float) -> bytes:
    """A body that is no image and needs no more than a few lines.

    Raises ContentEncodingError, BodyTooLargeError, SlowBodyError, ClientDisconnectedError.
    """
    return await _in_time(request, timeout_s, _whole(request, _SMALL_BODY_BYTES))


async def _in_time(request: Request, timeout_s: float, reading: Awaitable[T]) -> T:
    """For reading a body to its end. Raises ContentEncodingError, SlowBodyError, ClientDisconnectedError."""
    try:
        async with asyncio.timeout(timeout_s):
            read = await reading
    except TimeoutError:
        raise SlowBodyError(timeout_s) from None
    except ClientDisconnect:
        raise ClientDisconnectedError from None
    record_of(request.scope).body_read = True
    return read


async def _read(request: Request, settings: Settings) -> Sequence[bytes | ImageTooLargeError]:
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type == b"multipart/form-data":
        parts = FileParts(
            options.get(b"boundary", b""),
            max_files=settings.max_images_per_request,
            max_file_bytes=settings.max_image_bytes,
        )
        with closing(parts):
            async for chunk in _counted(request, settings.max_request_bytes):
                parts.feed(chunk)
            files = parts.files()
        if len(files) == 1 and isinstance(files[0], ImageTooLargeError):
            raise files[0]
        return files
    # The bytes decide what it is, not the header: curl alone calls everything a form.
    return [await _whole(request, settings.max_request_bytes, settings.max_image_bytes)]


async def _whole(request: Request, limit_bytes: int, image_limit_bytes: int | None = None) -> bytes:
    received = 0
    chunks = []
    async for chunk in _counted(request, limit_bytes):
        received += len(chunk)
        if image_limit_bytes is not None and received > image_limit_bytes:
            raise ImageTooLargeError(image_limit_bytes)
        chunks.append(chunk)
    # One that came in one piece is not copied.
    return b"".join(chunks)


async def _counted(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    codings = ",".join(request.headers.getlist("content-encoding"))
    if not all(coding.strip().lower() in {"", "identity"} for coding in codings.split(",")):
        raise ContentEncodingError(codings)
    declared = request.headers.get("content-length", "")
    # A number longer than any size is not worth converting, and int() refuses to beyond 4300 digits.
    if declared.isdecimal() and (len(declared) > _LONGEST_SIZE or int(declared) > limit_bytes):
        raise BodyTooLargeError(limit_bytes)
    received = 0
    record = record_of(request.scope)
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        record.reserve_body_bytes(len(chunk))
        yield chunk
