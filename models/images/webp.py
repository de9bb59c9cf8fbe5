"""Predict the cost of decoding a WebP from its header (WebP container specification)."""

from __future__ import annotations

import struct

from models.images.colour import DIRECTORY_BYTES, has_tables
from models.images.costs import Picture
from models.interface.errors import UndecodableImageError

# Nanoseconds of libwebp, and bytes for each pixel: ARGB of the frame, the canvas, the previous canvas, its copy for
# Python, and Pillow's image; less for a file of one lossy frame alone. A lossless file may have tables for every few
# pixels, which its header does not state; the limits of a decoder process bound it.
_PIXEL_NS = 45.0
_BYTE_NS = 70.0
_PIXEL_BYTES = 16
_LOSSY_PIXEL_BYTES = 14
_SIZE_BITS = 0x3FFF
_EXTENDED_HEADER = 30
_MOST_CHUNKS = 16
# Bit of the flags in a VP8X chunk.
_HAS_PROFILE = 0x20


def cost(encoded: bytes, _enough: int) -> Picture:
    """Of a WebP."""
    kind = encoded[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(encoded[24:27], "little")
        height = 1 + int.from_bytes(encoded[27:30], "little")
        kind = _image_kind(encoded)
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", encoded, 21)
        width, height = 1 + (bits & _SIZE_BITS), 1 + (bits >> 14 & _SIZE_BITS)
    elif kind == b"VP8 ":
        width, height = (side & _SIZE_BITS for side in struct.unpack_from("<HH", encoded, 26))
    else:
        raise UndecodableImageError("WebP", "its header is damaged")
    pixels, icc = width * height, profile_of(encoded)
    return Picture(
        width,
        height,
        pixels * _PIXEL_NS + len(encoded) * _BYTE_NS,
        pixels * (_LOSSY_PIXEL_BYTES if encoded[12:16] == b"VP8 " else _PIXEL_BYTES),
        ordinary=kind == b"VP8 ",
        profile=bool(icc),
        tables=has_tables(icc[:DIRECTORY_BYTES]),
    )


def profile_of(encoded: bytes) -> bytes:
    """Return the ICC profile, which is the first chunk of a file that has one; empty if there is none."""
    if encoded[12:16] != b"VP8X" or not encoded[20] & _HAS_PROFILE:
        return b""
    if encoded[_EXTENDED_HEADER : _EXTENDED_HEADER + 4] != b"ICCP":
        return b""
    (size,) = struct.unpack_from("<I", encoded, _EXTENDED_HEADER + 4)
    return encoded[_EXTENDED_HEADER + 8 : _EXTENDED_HEADER + 8 + size]


def _image_kind(encoded: bytes) -> bytes:
    """Return the type of the first chunk with an image or a part of one: VP8 (lossy), VP8L, ALPH or ANMF."""
    at = _EXTENDED_HEADER
    for _ in range(_MOST_CHUNKS):
        kind, size = struct.unpack_from("<4sI", encoded, at)
        if kind in {b"VP8 ", b"VP8L", b"ALPH", b"ANMF"}:
            return bytes(kind)
        at += 8 + size + size % 2
    return b""
