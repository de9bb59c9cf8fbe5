"""The chunks of a PNG besides its pixels, read before any decode, as a defence against decompression bombs.

Pillow takes the size from the last IHDR chunk before the pixels, unpacks compressed text, and keeps all text in memory.
format_costs.py adds that to the cost. Chunks are those of the PNG specification, third edition, section 11.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from models.interface.errors import UndecodableImageError

_SIGNATURE_BYTES = 8
_CHUNK = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4
# Encoders write chunks of 8 kB and more: a PNG of 20 MB has 2500. Reading them takes about 1 ms.
_MOST_CHUNKS = 4_000
# Pillow's limit for one chunk, and the highest ratio of Deflate.
_MOST_UNPACKED_BYTES = 2**20
_MOST_DEFLATED = 1032

_COMPRESSED = frozenset({b"iCCP", b"iTXt", b"zTXt"})
# Chunks that Pillow turns into Python objects.
_INTERPRETED = _COMPRESSED | {b"eXIf", b"tEXt"}
_PIXELS = frozenset({b"IDAT", b"fdAT"})


class Chunks(NamedTuple):
    """The chunks of a PNG. `complete`: all of them were counted. `interpreted_bytes`: of chunks that Pillow interprets.
    `unpacked_bytes`: upper bound of what compressed ones unpack to. `other_bytes`: of other chunks without pixels."""

    number: int
    complete: bool
    interpreted_bytes: int
    unpacked_bytes: int
    other_bytes: int


def read_chunks(encoded: bytes) -> Chunks:
    """Count the chunks. Raises UndecodableImageError if the PNG does not begin with its header, or has two, and
    struct.error if it ends before its first chunk."""
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
