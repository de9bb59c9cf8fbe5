"""What the decoder of each format does with a file, from its header and markers alone.

Each function returns the Picture of a file: its size, and an upper bound of the decoder's time and memory. It raises
UndecodableImageError, or struct.error and IndexError for a damaged header. formats.py names the function of
each format, and adds what happens to the pixels afterwards.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from models.images.headers import COEFFICIENTS, read_jpeg, read_png_chunks, read_tiff_numbers
from models.interface.errors import UndecodableImageError


class Picture(NamedTuple):
    """What a header says about the cost of a decode.

    `decoder_ns`: nanoseconds of the decoder on one core. `decoder_bytes`: bytes that it allocates, and
    `thread_decoder_bytes` in a thread, if that differs. `output_pixels`: pixels to convert and resize; None is all of
    them. `ordinary`: decoders handle such files every day.
    """

    width: int
    height: int
    decoder_ns: float
    decoder_bytes: float
    ordinary: bool = True
    output_pixels: int | None = None
    thread_decoder_bytes: float | None = None


# Nanoseconds of libjpeg-turbo: for each byte of entropy-coded data; for each block of a scan; for each coefficient that
# a scan of a progressive image may change; for each that may be arithmetically coded, which needs no bytes of the file;
# to compute the pixels of a block, or to smooth one of an unfinished progressive image. And for each byte of Exif data,
# which Pillow reads in Python.
_NS_JPEG_BYTE = 12.0
_NS_JPEG_BLOCK = 30.0
_NS_JPEG_COEFFICIENT = 1.75
_NS_JPEG_ARITHMETIC_COEFFICIENT = 120.0
_NS_JPEG_BLOCK_OUT = 200.0
_NS_JPEG_SMOOTHED_BLOCK = 180.0
_NS_EXIF_BYTE = 100.0
_COEFFICIENT_BYTES = 2 * 64
# Reductions that Pillow and simplejpeg both have, largest first.
_REDUCTIONS = (8, 4, 2)


def jpeg(encoded: bytes, enough: int) -> Picture:
    """Of a JPEG, decoded so that its shorter side keeps `enough` pixels; 0 is full size."""
    layout = read_jpeg(encoded)
    if not layout.components:
        raise UndecodableImageError("JPEG", "it has no frame header")
    blocks = [layout.blocks(each) for each in range(len(layout.components))]
    if layout.arithmetic:
        coefficient_ns = _NS_JPEG_ARITHMETIC_COEFFICIENT
    else:
        coefficient_ns = _NS_JPEG_COEFFICIENT if layout.progressive else _NS_JPEG_BLOCK / COEFFICIENTS
    ns = len(encoded) * _NS_JPEG_BYTE + len(layout.exif) * _NS_EXIF_BYTE
    ns += sum(
        blocks[component] * (_NS_JPEG_BLOCK + scan.coefficients * coefficient_ns)
        for scan in layout.scans
        for component in scan.components
    )
    shorter = min(layout.width, layout.height)
    reducible = enough and not layout.lossless
    reduction = next((each for each in _REDUCTIONS if reducible and shorter // each >= enough), 1)
    output = -(-layout.width // reduction) * -(-layout.height // reduction)
    ns += sum(blocks) * max(_NS_JPEG_BLOCK_OUT / reduction, _NS_JPEG_SMOOTHED_BLOCK * layout.buffered)
    coefficient_bytes = sum(blocks) * _COEFFICIENT_BYTES * layout.buffered
    return Picture(
        layout.width,
        layout.height,
        ns,
        # Four bytes a pixel in Pillow. libjpeg-turbo writes an array of three, which a decoder process copies to its
        # parent as a whole. Without `enough` there is no such process.
        coefficient_bytes + (6 if enough else 4) * output,
        ordinary=layout.plain and not layout.arithmetic,
        output_pixels=output,
        thread_decoder_bytes=coefficient_bytes + 3 * output,
    )


# Nanoseconds of zlib and Pillow's filters for each byte of the unpacked rows. Nanoseconds of Pillow for each chunk,
# each byte of metadata, and each byte unpacked from it, and the memory for these. The slowest metadata is text of many
# lines that claims to be Exif data; the largest is text with characters outside of the BMP.
_NS_PNG_BYTE = 9.0
_NS_PNG_CHUNK = 3_000.0
_NS_PNG_METADATA_BYTE = 50.0
_NS_PNG_UNPACKED_BYTE = 6.0
_PNG_BYTES_FOR_METADATA_BYTE = 20
_PNG_BYTES_FOR_UNPACKED_BYTE = 6
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_GREY, _PNG_PALETTE = 0, 3
_INTERLACED_FACTOR = 2.0
_BYTE_BITS = 8


def png(encoded: bytes, _enough: int) -> Picture:
    """Of a PNG."""
    width, height, depth, colours, _, _, interlaced = struct.unpack_from(">IIBBBBB", encoded, 16)
    chunks = read_png_chunks(encoded)
    channels = _PNG_CHANNELS.get(colours, 4)
    row_bytes = -(-width * channels * depth // 8) + 1
    deep = depth > _BYTE_BITS
    # Grey and palettes have one byte a pixel in Pillow, two with sixteen bits; everything else has four.
    stored = (2 if deep else 1) if colours in {_PNG_GREY, _PNG_PALETTE} else 4
    ns = row_bytes * height * _NS_PNG_BYTE * (_INTERLACED_FACTOR if interlaced else 1.0)
    ns += chunks.number * _NS_PNG_CHUNK
    ns += chunks.interpreted_bytes * _NS_PNG_METADATA_BYTE + chunks.unpacked_bytes * _NS_PNG_UNPACKED_BYTE
    return Picture(
        width,
        height,
        ns,
        width * height * stored
        + 4 * row_bytes
        + chunks.interpreted_bytes * _PNG_BYTES_FOR_METADATA_BYTE
        + chunks.unpacked_bytes * _PNG_BYTES_FOR_UNPACKED_BYTE
        + chunks.other_bytes,
        # Only a decoder process enforces the prediction.
        ordinary=not deep and chunks.complete,
    )


# Nanoseconds of libwebp, and bytes for each pixel: ARGB of the frame, the canvas, the previous canvas, its copy for
# Python, and Pillow's image; less for a file of one lossy frame alone. A lossless file may have tables for every few
# pixels, which its header does not state; the limits of a decoder process bound it.
_NS_WEBP_PIXEL = 45.0
_NS_WEBP_BYTE = 70.0
_WEBP_BYTES = 16
_WEBP_LOSSY_BYTES = 14
_WEBP_SIZE_BITS = 0x3FFF
_WEBP_EXTENDED_HEADER = 30
_MOST_WEBP_CHUNKS = 16


def webp(encoded: bytes, _enough: int) -> Picture:
    """Of a WebP."""
    kind = encoded[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(encoded[24:27], "little")
        height = 1 + int.from_bytes(encoded[27:30], "little")
        kind = _webp_image_kind(encoded)
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", encoded, 21)
        width, height = 1 + (bits & _WEBP_SIZE_BITS), 1 + (bits >> 14 & _WEBP_SIZE_BITS)
    elif kind == b"VP8 ":
        width, height = (side & _WEBP_SIZE_BITS for side in struct.unpack_from("<HH", encoded, 26))
    else:
        raise UndecodableImageError("WEBP", "its header is damaged")
    pixels = width * height
    return Picture(
        width,
        height,
        pixels * _NS_WEBP_PIXEL + len(encoded) * _NS_WEBP_BYTE,
        pixels * (_WEBP_LOSSY_BYTES if encoded[12:16] == b"VP8 " else _WEBP_BYTES),
        ordinary=kind == b"VP8 ",
    )


def _webp_image_kind(encoded: bytes) -> bytes:
    """Return the type of the first chunk with an image or a part of one: VP8 (lossy), VP8L, ALPH or ANMF."""
    at = _WEBP_EXTENDED_HEADER
    for _ in range(_MOST_WEBP_CHUNKS):
        kind, size = struct.unpack_from("<4sI", encoded, at)
        if kind in {b"VP8 ", b"VP8L", b"ALPH", b"ANMF"}:
            return bytes(kind)
        at += 8 + size + size % 2
    return b""


_NS_GIF_PIXEL = 20.0
_GIF_TRAILER, _GIF_EXTENSION, _GIF_IMAGE = 0x3B, 0x21, 0x2C


def gif(encoded: bytes, _enough: int) -> Picture:
    """Of the first frame of a GIF."""
    width, height, flags = struct.unpack_from("<HHB", encoded, 6)
    at = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    while encoded[at] == _GIF_EXTENSION:
        at += 2
        while encoded[at]:
            at += 1 + encoded[at]
        at += 1
    if encoded[at] == _GIF_IMAGE:
        left, top, across, down = struct.unpack_from("<HHHH", encoded, at + 1)
        # A frame that is larger than the screen enlarges the screen.
        width, height = max(width, left + across), max(height, top + down)
    pixels = width * height
    return Picture(width, height, pixels * _NS_GIF_PIXEL, pixels * 5)


_NS_BMP_PIXEL = 8.0
# Pillow unpacks runs in Python.
_NS_BMP_RUN_PIXEL = 150.0
_NS_BMP_RUN_BYTE = 350.0
_BMP_OS2_HEADER = 12
_BMP_RUNS = frozenset({1, 2})
_BMP_PALETTE_BITS = 8


def bmp(encoded: bytes, _enough: int) -> Picture:
    """Of a BMP."""
    (header_bytes,) = struct.unpack_from("<I", encoded, 14)
    if header_bytes == _BMP_OS2_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", encoded, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", encoded, 18)
    width, height = abs(width), abs(height)
    pixels = width * height
    in_runs = compression in _BMP_RUNS
    stored = 1 if bits <= _BMP_PALETTE_BITS else 4
    return Picture(
        width,
        height,
        pixels * _NS_BMP_RUN_PIXEL + len(encoded) * _NS_BMP_RUN_BYTE if in_runs else pixels * _NS_BMP_PIXEL,
        # Runs are unpacked into a bytearray of one byte a pixel, and copied.
        pixels * (stored + 2 * in_runs),
    )


# Nanoseconds of libtiff for each byte that a strip or tile unpacks to, by the value of the tag Compression; others
# count as the slowest. For CCITT a byte is eight pixels.
_NS_TIFF_BYTE: Mapping[int, float] = {
    1: 2.0,  # none
    2: 80.0,  # CCITT
    3: 80.0,
    4: 80.0,
    5: 12.0,  # LZW
    7: 25.0,  # JPEG
    8: 10.0,  # Deflate
    32773: 4.0,  # PackBits
    32946: 10.0,
    50000: 6.0,  # Zstandard
}
_NS_TIFF_OTHER_BYTE = 200.0
_NS_TIFF_PIECE = 5_000.0
# LittleCMS converts LAB to RGB.
_NS_TIFF_LAB_PIXEL = 25.0
_LAB = 8
# Tags (TIFF 6.0, section 8).
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANES = 256, 257, 258, 259, 277, 278, 284
_PHOTOMETRIC, _ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 262, 274, 322, 323
_TIFF_TAGS = range(_WIDTH, _TILE_LENGTH + 1)
_NOT_PACKED = 1
_SEPARATE_PLANES = 2


def tiff(encoded: bytes, _enough: int) -> Picture:
    """Of the first picture of a TIFF."""
    tags = read_tiff_numbers(encoded, _TIFF_TAGS)
    width, length = tags.get(_WIDTH, 0), tags.get(_LENGTH, 0)
    if not width or not length:
        raise UndecodableImageError("TIFF", "its first directory has no width and length")
    samples, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, 1)
    tile = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    across, down = tile if all(tile) else (width, min(tags.get(_ROWS) or length, length))
    pieces = -(-width // across) * -(-length // down)
    piece_samples = samples
    if tags.get(_PLANES) == _SEPARATE_PLANES:
        pieces, piece_samples = pieces * samples, 1
    piece_bytes = -(-across * piece_samples * bits // 8) * down
    compression = tags.get(_COMPRESSION, _NOT_PACKED)
    byte_ns = _NS_TIFF_BYTE.get(compression, _NS_TIFF_OTHER_BYTE)
    pixels = width * length
    packed = compression != _NOT_PACKED
    copies = 1 if tags.get(_ORIENTATION, 1) == 1 else 2
    return Picture(
        width,
        length,
        pieces * (_NS_TIFF_PIECE + piece_bytes * byte_ns)
        + pixels * _NS_TIFF_LAB_PIXEL * (tags.get(_PHOTOMETRIC) == _LAB),
        # One piece, packed and unpacked, and Pillow's image, twice if it has to be rotated.
        2 * piece_bytes * packed + pixels * copies * (4 if samples > 1 else -(-bits // 8)),
    )
