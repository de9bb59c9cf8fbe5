"""The images of a request: a raw body, or the files of a multipart one. Counted as they come, whatever the
headers claim, and kept in memory: nothing a caller sends is written to disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from time import perf_counter
from typing import TypeVar

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.observed import observed
from app.problems import (
    BodyTooLargeError,
    CallerGoneError,
    MalformedMultipartError,
    NoImagesError,
    SlowBodyError,
    TooManyImagesError,
    TooMuchAtOnceError,
)
from app.settings import Settings
from models import errors
from models.errors import ImageTooLargeError

T = TypeVar("T")

# What is wrong with a body, or with an image in it: of every route that takes images.
UPLOAD_ERRORS: tuple[type[Exception], ...] = (
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

# Form fields beside the files: none are needed, a few are forgiven.
_MAX_FIELDS = 16

# Parameters as JSON, with room for whitespace.
_SMALL_BODY_BYTES = 64 * 1024

# Digits of 2**64.
_LONGEST_SIZE = 20


async def read_images(request: Request, settings: Settings) -> list[bytes]:
    """The encoded images of `request`, one or more, in order.

    Raises the request errors of app/problems.py, and ImageTooLargeError.
    """
    started_at = perf_counter()
    images = await _in_time(request, settings.read_timeout_s, _read(request, settings))
    observed(request.scope).read_seconds = perf_counter() - started_at
    return images


async def read_small(request: Request, *, timeout_s: float) -> bytes:
    """A body that is no image and needs no more than a few lines.

    Raises BodyTooLargeError, SlowBodyError, CallerGoneError.
    """
    return await _in_time(request, timeout_s, _whole(request, _SMALL_BODY_BYTES))


async def _in_time(request: Request, timeout_s: float, reading: Awaitable[T]) -> T:
    """For reading a body to its end. Raises SlowBodyError, CallerGoneError."""
    try:
        async with asyncio.timeout(timeout_s):
            read = await reading
    except TimeoutError:
        raise SlowBodyError(timeout_s) from None
    except ClientDisconnect:
        raise CallerGoneError from None
    observed(request.scope).body_read = True
    return read


async def _read(request: Request, settings: Settings) -> list[bytes]:
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
            return parts.files()
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
    declared = request.headers.get("content-length", "")
    # A number longer than any size is not worth converting, and int() refuses to beyond 4300 digits.
    if declared.isdecimal() and (len(declared) > _LONGEST_SIZE or int(declared) > limit_bytes):
        raise BodyTooLargeError(limit_bytes)
    received = 0
    seen = observed(request.scope)
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        seen.hold(len(chunk))
        yield chunk


class FileParts:
    """Collects the files of a multipart/form-data body (RFC 7578) fed to it in chunks. To be closed.

    `feed` and `files` raise MalformedMultipartError, TooManyImagesError, NoImagesError, ImageTooLargeError.
    """

    def __init__(self, boundary: bytes, *, max_files: int, max_file_bytes: int) -> None:
        self._max_files = max_files
        self._max_file_bytes = max_file_bytes
        self._files: list[bytearray] = []
        self._fields = 0
        self._part: bytearray | None = None
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise MalformedMultipartError(str(error)) from error

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedMultipartError(str(error)) from error

    def files(self) -> list[bytes]:
        """The files, once the whole body has been fed."""
        if not self._ended:
            raise MalformedMultipartError("it ends before its last boundary")
        if not self._files:
            raise NoImagesError
        return [bytes(file) for file in self._files]

    def close(self) -> None:
        """Have its parser forget it: a ring of the two would keep the files."""
        self._parser.callbacks = {}

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, chunk: bytes, start: int, end: int) -> None:
        self._header_name += chunk[start:end]

    def _on_header_value(self, chunk: bytes, start: int, end: int) -> None:
        self._header_value += chunk[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" in options:
            if len(self._files) == self._max_files:
                raise TooManyImagesError(self._max_files)
            self._part = bytearray()
            self._files.append(self._part)
            return
        self._part = None
        self._fields += 1
        if self._fields > _MAX_FIELDS:
            raise MalformedMultipartError(f"more than {_MAX_FIELDS} fields are no files")

    def _on_part_data(self, chunk: bytes, start: int, end: int) -> None:
        if self._part is None:
            return
        self._part += chunk[start:end]
        if len(self._part) > self._max_file_bytes:
            raise ImageTooLargeError(self._max_file_bytes)

    def _on_end(self) -> None:
        self._ended = True
