"""Compressed bodies, in both directions: gzip and deflate. What a body expands to is limited while it is expanded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial

from fastapi import Request

from app.api.off_loop import off_loop
from app.http.problems import BodyTooLargeError, ContentEncodingError, InvalidInputError
from app.observability.request_record import record_of

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
    record = record_of(request.scope)
    expanded = bytearray()
    pieces = expanded_pieces(body, codings[0])
    try:
        while piece := await off_loop(len(body) + len(expanded), partial(next, pieces, b"")):
            if len(expanded) + len(piece) > limit_bytes:
                raise BodyTooLargeError(limit_bytes)
            record.reserve_held_bytes(len(piece))
            expanded += piece
    except ValueError as error:
        raise InvalidInputError(f"The {codings[0]} body cannot be expanded: {error}.") from None
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


async def compress(body: bytes, coding: str) -> bytes:
    """Return `body` compressed with gzip or deflate."""

    def compressed() -> bytes:
        stream = zlib.compressobj(_FASTEST, wbits=_WINDOWS[coding])
        return stream.compress(body) + stream.flush()

    return await off_loop(len(body), compressed)
