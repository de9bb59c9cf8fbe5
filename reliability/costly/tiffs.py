"""TIFF files whose strips or tiles are all the same bytes, and unpack to far more than the picture."""

from __future__ import annotations

import lzma
import random
import struct
import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

_SHORT, _LONG = 3, 4
_PIECE = 1 << 20


class Packing(IntEnum):
    """Values of the tag Compression."""

    RAW = 1
    JPEG = 7
    DEFLATE = 8
    LZMA = 34925


class Photometric(IntEnum):
    """Values of the tag PhotometricInterpretation."""

    GREY = 1
    RGB = 2
    LAB = 8


class Pieces(NamedTuple):
    """The strips or tiles that a picture is cut into."""

    width: int
    length: int
    tiled: bool


def strips(width: int, rows: int) -> Pieces:
    """Return strips of so many rows."""
    return Pieces(width, rows, tiled=False)


def tiles(width: int, length: int) -> Pieces:
    """Return tiles of this size."""
    return Pieces(width, length, tiled=True)


def tiff(
    width: int,
    height: int,
    pieces: Pieces,
    packing: Packing = Packing.DEFLATE,
    *,
    samples: int = 1,
    bits: int = 8,
    photometric: Photometric | None = None,
    piece: bytes | None = None,
) -> bytes:
    """Return a little-endian TIFF of zeros, or of `piece` in each strip or tile."""
    if piece is None:
        piece = _packed(packing, pieces.width * pieces.length * samples * bits // 8)
    count = -(-width // pieces.width) * -(-height // pieces.length)
    if photometric is None:
        photometric = Photometric.GREY if samples == 1 else Photometric.RGB
    entries: dict[int, tuple[int, Sequence[int]]] = {
        256: (_LONG, [width]),
        257: (_LONG, [height]),
        258: (_SHORT, [bits] * samples),
        259: (_SHORT, [packing]),
        262: (_SHORT, [photometric]),
        277: (_SHORT, [samples]),
    }
    if samples > 3:  # noqa: PLR2004 - above RGB is alpha
        entries[338] = (_SHORT, [2])
    if pieces.tiled:
        entries |= {322: (_LONG, [pieces.width]), 323: (_LONG, [pieces.length])}
    else:
        entries[278] = (_LONG, [pieces.length])
    offsets, lengths = (324, 325) if pieces.tiled else (273, 279)
    entries[lengths] = (_LONG, [len(piece)] * count)
    entries[offsets] = (_LONG, [0] * count)
    # The same length, whatever the offsets are.
    entries[offsets] = (_LONG, [len(_header(entries))] * count)
    return _header(entries) + piece


def _header(entries: dict[int, tuple[int, Sequence[int]]]) -> bytes:
    start = 8 + 2 + 12 * len(entries) + 4
    directory, values = b"", b""
    for tag, (kind, numbers) in sorted(entries.items()):
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == _SHORT else 'I'}", *numbers)
        directory += struct.pack("<HHI", tag, kind, len(numbers))
        if len(packed) > 4:  # noqa: PLR2004 - what an entry holds itself
            directory += struct.pack("<I", start + len(values))
            values += packed
        else:
            directory += packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + values


def _packed(packing: Packing, zeros: int) -> bytes:
    if packing is Packing.DEFLATE:
        packer = zlib.compressobj(9)
        parts = [packer.compress(bytes(min(_PIECE, zeros - start))) for start in range(0, zeros, _PIECE)]
        return b"".join(parts) + packer.flush()
    return bytes(zeros)


def lzma_literals(length: int) -> bytes:
    """Return random bytes as LZMA packs them; without 56 of the values, since it would store them all as they are."""
    values = random.Random(0).choices(range(200), k=length)  # noqa: S311 - a picture, no secret
    return lzma.compress(bytes(values), format=lzma.FORMAT_XZ, preset=6)
