"""What a PNG holds besides its pixels, read chunk by chunk before any decode.

Pillow takes the size from the last IHDR chunk before the pixels, unpacks compressed text, and keeps all text in memory.
What that costs is added to the prediction in cost.py. Chunks are those of the PNG specification, third edition,
section 11.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from models.interface.errors import UndecodableImageError

_SIGNATURE_BYTES = 8
_CHUNK = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4
# Encoders write chunks of 8 kB and more: a PNG of 20 MB has 2500. About 1 ms to look at.
_MOST_CHUNKS = 4_000
# Pillow unpacks no more of one chunk, and Deflate packs no tighter.
_MOST_UNPACKED_BYTES = 2**20
_MOST_DEFLATED = 1032

_COMPRESSED = frozenset({b"iCCP", b"iTXt", b"zTXt"})
# Pillow makes Python objects of what these hold.
_INTERPRETED = _COMPRESSED | {b"eXIf", b"tEXt"}
_PIXELS = frozenset({b"IDAT", b"fdAT"})


class Chunks(NamedTuple):
    """The chunks of a PNG. `complete`: all of them were counted. Bytes are those of chunks that are interpreted, what
    compressed ones may hold at most, and those of all others without pixels."""

    number: int
    complete: bool
    interpreted_bytes: int
    unpacked_bytes: int
    other_bytes: int


def read_chunks(encoded: bytes) -> Chunks:
    """Raises UndecodableImageError for a PNG that does not begin with its header, or has two. Raises struct.error for
    one that ends before its first chunk."""
    interpreted = unpacked = other = count = 0
    at = _SIGNATURE_BYTES
    _, first = _CHUNK.unpack_from(encoded, at)
    if first != b"IHDR":
        raise UndecodableImageError("PNG", "it does not begin with its header")
    while at + _CHUNK.size <= len(encoded) and count < _MOST_CHUNKS:
        length, kind = _CHUNK.unpack_from(encoded, at)
        if kind == b"IHDR" and count:
            raise UndecodableImageError("PNG", "it has two headers")
        at += _CHUNK.size + length + _CHECKSUM_BYTES
        count += 1
        if kind in _INTERPRETED:
            interpreted += length
            unpacked += min(_MOST_UNPACKED_BYTES, length * _MOST_DEFLATED) if kind in _COMPRESSED else 0
        elif kind not in _PIXELS:
            other += length
    return Chunks(count, at + _CHUNK.size > len(encoded), interpreted, unpacked, other)
