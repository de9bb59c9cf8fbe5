"""Compressed bodies, in both directions: gzip and deflate. What a body expands to is limited while it is expanded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial

from fastapi import Request

from app.api.off_loop import off_loop
from app.http.problems import BodyTooLargeError, ContentEncodingError, InvalidInputError
from app.observability.request_record import RequestRecord, record_of

CODINGS = frozenset({"identity", "gzip", "deflate"})

# What zlib is given, and returns at most, in one call.
_INPUT_BYTES = 64 * 1024
_PIECE_BYTES = 2**20

# zlib's wbits. Raw deflate is not what RFC 9110 means, but what some clients send.
_WINDOWS = {"gzip": 31, "deflate": 15}
_RAW_DEFLATE = -15
_METHOD = 15

_FASTEST = 1


async def expand(request: Request, body: bytes, limit_bytes: int) -> bytes | bytearray:
    """Return `body`, which `request` has, without its Content-Encoding, one of CODINGS.

    Raises BodyTooLargeError if it expands to more than `limit_bytes`, BodyMemoryFullError, InvalidInputError if it is
    damaged, ContentEncodingError if it is compressed more than once.
    """
    stated = ",".join(request.headers.getlist("content-encoding")).split(",")
    codings = [coding for each in stated if (coding := each.strip().lower()) not in {"", "identity"}]
    if not codings:
        return body
    if len(codings) > 1:
        raise ContentEncodingError(", ".join(codings), CODINGS)
    return await expand_coding(record_of(request.scope), body, codings[0], limit_bytes)


async def expand_coding(record: RequestRecord, body: bytes, coding: str, limit_bytes: int) -> bytearray:
    """Return what `body` expands to; `coding` is gzip or deflate. Raises as `expand` does."""
    expanded = bytearray()
    pieces = expanded_pieces(body, coding)
    try:
        while piece := await off_loop(len(body) + len(expanded), partial(next, pieces, b"")):
            if len(expanded) + len(piece) > limit_bytes:
                raise BodyTooLargeError(limit_bytes)
            record.reserve_held_bytes(len(piece))
            expanded += piece
    except ValueError as error:
        raise InvalidInputError(f"The {coding} body cannot be expanded: {error}.") from None
    return expanded


def expanded_pieces(body: bytes, coding: str) -> Iterator[bytes]:
    """Yield what `body` expands to, in pieces of at most 1 MiB. Raises ValueError if it is damaged or cut short, or if
    anything follows it."""
    stream = zlib.decompressobj(_window(body, coding))
    compressed = memoryview(body)
    try:
        for start in range(0, len(body), _INPUT_BYTES):
            waiting: bytes | memoryview = compressed[start : start + _INPUT_BYTES]
            while True:
                piece = stream.decompress(waiting, _PIECE_BYTES)
                if piece:
                    yield piece
                waiting = stream.unconsumed_tail
                if stream.eof or (not waiting and len(piece) < _PIECE_BYTES):
                    break
            if stream.eof:
                if stream.unused_data or start + _INPUT_BYTES < len(body):
                    raise ValueError("other bytes follow it")
                return
    except zlib.error as error:
        raise ValueError(str(error)) from None
    raise ValueError("it is cut short")


def _window(body: bytes, coding: str) -> int:
    # A header of zlib has its method, and is a multiple of 31 (RFC 1950, section 2.2).
    header = body[:2]
    if coding == "deflate" and header and (header[0] & _METHOD != zlib.DEFLATED or int.from_bytes(header) % 31):
        return _RAW_DEFLATE
    return _WINDOWS[coding]


def coding_of(message: bytes) -> str | None:
    """Return the coding that the first bytes of a gRPC message show: gzip, deflate, or None. They are no fields of a
    message: gzip's have a wire type that does not exist, zlib's the number 15, or another length."""
    if message.startswith(b"\x1f\x8b"):
        return "gzip"
    return "deflate" if message[:1] == b"\x78" and int.from_bytes(message[:2]) % 31 == 0 else None


async def compress(body: bytes, coding: str) -> bytes:
    """Return `body` compressed with gzip or deflate."""

    def compressed() -> bytes:
        stream = zlib.compressobj(_FASTEST, wbits=_WINDOWS[coding])
        return stream.compress(body) + stream.flush()

    return await off_loop(len(body), compressed)
