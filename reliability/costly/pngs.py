"""PNG, GIF and BMP files of one colour, which pack to almost nothing."""

from __future__ import annotations

import random
import struct
import zlib
from enum import IntEnum

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PAETH = 4
_ROWS_AT_ONCE = 256
# Twice as many fit into the window of deflate.
_NOISE_BYTES = 16_000
# Offsets and distances of the seven passes of Adam7 (PNG, section 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

_GIF_CODES = 4096


class Colour(IntEnum):
    """Colour types of PNG."""

    GREY = 0
    RGB = 2
    PALETTE = 3
    GREY_ALPHA = 4
    RGBA = 6


_SAMPLES = {Colour.GREY: 1, Colour.RGB: 3, Colour.PALETTE: 1, Colour.GREY_ALPHA: 2, Colour.RGBA: 4}


def png(
    width: int,
    height: int,
    colour: Colour,
    bits: int,
    *,
    interlaced: bool = False,
    trns: bool = False,
    noise: bool = False,
) -> bytes:
    """Return a PNG whose rows are all predicted by Paeth: zeros, or with `noise` the same random bytes in each row.

    `trns` makes the first colour of a palette transparent.
    """
    packer = zlib.compressobj(9)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    pixels = bytearray()
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        length = -(-columns * bits * _SAMPLES[colour] // 8)
        row = bytes([_PAETH]) + (_noise(length) if noise else bytes(length))
        for start in range(0, rows, _ROWS_AT_ONCE):
            pixels += packer.compress(row * min(_ROWS_AT_ONCE, rows - start))
    pixels += packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))]
    if colour is Colour.PALETTE:
        chunks.append((b"PLTE", bytes(3 << bits)))
    if trns:
        chunks.append((b"tRNS", b"\x63"))
    chunks += [(b"IDAT", bytes(pixels)), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks)


def gif(width: int, height: int, *, canvas: tuple[int, int] | None = None, transparent: bool = False) -> bytes:
    """Return a GIF whose one frame has the first colour all over; `canvas` is larger than the frame."""
    screen = struct.pack("<HHBBB", *(canvas or (width, height)), 0x87, 0, 0) + bytes(3 * 256)
    control = b"!\xf9\x04\x01\x05\x00\x00\x00" if transparent else b""
    codes = _lzw_of_one_colour(width * height)
    blocks = b"".join(bytes([len(part)]) + part for part in (codes[at : at + 255] for at in range(0, len(codes), 255)))
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08" + blocks + b"\0"
    return b"GIF89a" + screen + control + frame + b";"


def single_run_bmp(width: int, height: int) -> bytes:
    """Return a run-length encoded BMP of runs of one pixel."""
    return _bmp(width, height, bits=8, compression=1, pixels=(b"\x01\x01" * width + b"\0\0") * height + b"\0\1")


def bilevel_bmp(width: int, height: int) -> bytes:
    """Return a BMP of one bit for each pixel, the most pixels that a byte can have without compression."""
    return _bmp(width, height, bits=1, compression=0, pixels=bytes(-(-width // 32) * 4 * height))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _noise(length: int) -> bytes:
    """Random bytes, on which a processor predicts no branch of Paeth's; they repeat, and so pack well."""
    period = random.Random(0).randbytes(_NOISE_BYTES)  # noqa: S311 - a picture, no secret
    return (period * (length // _NOISE_BYTES + 1))[:length]


def _lzw_of_one_colour(pixels: int) -> bytes:
    """LZW codes of 8 bits at first, each a run one pixel longer than the one before until all codes are taken."""
    clear, end = 256, 257
    packed = packed_bits = 0
    size, following, run, done = 9, 258, 1, 1
    codes = [(clear, 9), (0, 9)]
    while done < pixels:
        if following < _GIF_CODES:
            run += 1
            codes.append((following, size))
            following += 1
            size += following == 1 << size and following < _GIF_CODES
        else:
            codes.append((_GIF_CODES - 1, size))
        done += run
    for code, bits in [*codes, (end, size)]:
        packed |= code << packed_bits
        packed_bits += bits
    return packed.to_bytes(packed_bits // 8 + 1, "little")


def _bmp(width: int, height: int, *, bits: int, compression: int, pixels: bytes) -> bytes:
    colours = 1 << bits
    start = 14 + 40 + 4 * colours
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + bytes(4 * colours) + pixels
