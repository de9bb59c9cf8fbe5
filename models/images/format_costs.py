"""What the decoder of each format does with a file, from its header and markers alone.

Each function returns the Picture of a file: its size, and an upper bound of the decoder's time and memory. It raises
UndecodableImageError, or struct.error and IndexError for a damaged header. formats.py names the function of
each format, and adds what happens to the pixels afterwards.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from models.images import png_chunks
from models.images.colour import DIRECTORY_BYTES, has_tables
from models.images.gif_blocks import read_gif
from models.images.headers import COEFFICIENTS, Layout, read_jpeg
from models.images.heif_boxes import read_heif
from models.images.png_chunks import read_png
from models.interface.errors import UndecodableImageError


class Picture(NamedTuple):
    """What a header says about the cost of a decode.

    `decoder_ns`: nanoseconds of the decoder on one core. `decoder_bytes`: bytes that it allocates, and
    `thread_decoder_bytes` in a thread, if that differs. `output_pixels`: pixels to convert and resize; None is all of
    them. `ordinary`: decoders handle such files every day. `profile`: its colours may have to be converted after the
    resize; `tables`: or before it, by a profile made of tables.
    """

    width: int
    height: int
    decoder_ns: float
    decoder_bytes: float
    ordinary: bool = True
    output_pixels: int | None = None
    thread_decoder_bytes: float | None = None
    profile: bool = False
    tables: bool = False


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
_JPEG_BITS = 8
_JPEG_COMPONENTS = frozenset({1, 3, 4})


def jpeg(encoded: bytes, enough: int) -> Picture:
    """Of a JPEG, decoded so that its shorter side keeps `enough` pixels; 0 is full size."""
    layout = read_jpeg(encoded)
    _check_frame(layout)
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
    reduction = layout.reduction(enough)
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
        profile=bool(layout.profile),
        tables=layout.has_tables,
    )


def _check_frame(layout: Layout) -> None:
    """Raises UndecodableImageError for a frame that no decoder here reads."""
    if not layout.components:
        raise UndecodableImageError("JPEG", "it has no frame header")
    if layout.precision != _JPEG_BITS:
        raise UndecodableImageError("JPEG", f"its samples have {layout.precision} bits, and only those of 8 are read")
    if layout.hierarchical:
        raise UndecodableImageError("JPEG", "it is hierarchical")
    if len(layout.components) not in _JPEG_COMPONENTS:
        raise UndecodableImageError("JPEG", f"it has {len(layout.components)} components, and 1, 3 or 4 are read")
    if not layout.width or not layout.height:
        raise UndecodableImageError("JPEG", "its header gives no height; it may follow the pixels (DNL)")


# Nanoseconds of zlib and Pillow's filters for each byte of the unpacked rows, and to read a chunk. Nanoseconds for each
# byte unpacked from metadata, and the memory for it, with Exif data as hexadecimal text.
_NS_PNG_BYTE = 9.0
_NS_PNG_CHUNK = 500.0
_NS_PNG_UNPACKED_BYTE = 12.0
_PNG_BYTES_FOR_UNPACKED_BYTE = 4
_INTERLACED_FACTOR = 2.0
_BYTE_BITS = 8


def png(encoded: bytes, _enough: int) -> Picture:
    """Of a PNG."""
    read = read_png(encoded, png_chunks.COUNTED_CHUNKS)
    pixels = read.width * read.height
    row_bytes = -(-read.width * png_chunks.CHANNELS[read.colours] * read.depth // 8) + 1
    deep = read.depth > _BYTE_BITS
    # Grey and palettes have one byte a pixel in Pillow, two with sixteen bits; everything else has four.
    stored = (2 if deep else 1) if read.colours in {png_chunks.GREY, png_chunks.PALETTE} else 4
    # The samples of sixteen bits that a transparent colour is compared with take a second decode.
    decodes = 2 if deep and read.colours == png_chunks.RGB and read.transparency else 1
    ns = decodes * row_bytes * read.height * _NS_PNG_BYTE * (_INTERLACED_FACTOR if read.interlaced else 1.0)
    ns += (read.number if read.complete else png_chunks.MOST_CHUNKS) * _NS_PNG_CHUNK
    ns += read.unpacked_bytes * _NS_PNG_UNPACKED_BYTE
    return Picture(
        read.width,
        read.height,
        ns,
        # Pillow gets a copy of the file.
        decodes * pixels * stored + 4 * row_bytes + len(encoded) + read.unpacked_bytes * _PNG_BYTES_FOR_UNPACKED_BYTE,
        # Only a decoder process enforces the prediction.
        ordinary=not deep and read.complete,
        profile=bool(read.packed_profile),
        tables=read.has_tables,
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
_WEBP_HAS_PROFILE = 0x20
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
        raise UndecodableImageError("WebP", "its header is damaged")
    pixels = width * height
    return Picture(
        width,
        height,
        pixels * _NS_WEBP_PIXEL + len(encoded) * _NS_WEBP_BYTE,
        pixels * (_WEBP_LOSSY_BYTES if encoded[12:16] == b"VP8 " else _WEBP_BYTES),
        ordinary=kind == b"VP8 ",
        profile=encoded[12:16] == b"VP8X" and bool(encoded[20] & _WEBP_HAS_PROFILE),
        # The first chunk.
        tables=encoded[30:34] == b"ICCP" and has_tables(encoded[38 : 38 + DIRECTORY_BYTES]),
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


def gif(encoded: bytes, _enough: int) -> Picture:
    """Of the first frame of a GIF."""
    read = read_gif(encoded)
    pixels = read.width * read.height
    # Pillow gets a copy of the file.
    return Picture(read.width, read.height, pixels * _NS_GIF_PIXEL, pixels * 5 + len(encoded))


_NS_BMP_PIXEL = 8.0
# Runs are unpacked in Python (bmp_runs.py).
_NS_BMP_RUN_PIXEL = 10.0
_NS_BMP_RUN_BYTE = 420.0
BMP_OS2_HEADER = 12
_BMP_RUNS = frozenset({1, 2})
_BMP_PALETTE_BITS = 8


def bmp(encoded: bytes, _enough: int) -> Picture:
    """Of a BMP."""
    (header_bytes,) = struct.unpack_from("<I", encoded, 14)
    if header_bytes == BMP_OS2_HEADER:
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
        # Runs are unpacked into a bytearray of one byte a pixel, and copied, as is the file.
        pixels * (stored + 2 * in_runs) + len(encoded) * in_runs,
    )


# Nanoseconds of dav1d and of libde265 for each pixel and for each byte of the file, with the conversion from YCbCr; and
# the bytes that they allocate for a pixel of one byte a sample, and in addition for one of two: the planes, RGB, its
# copy for Python, and Pillow's image. Measured on noise, the most expensive content.
_NS_AVIF_PIXEL = 28.0
_NS_AVIF_BYTE = 80.0
_AVIF_BYTES = 12
_NS_HEIC_PIXEL = 42.0
_NS_HEIC_BYTE = 55.0
_HEIC_BYTES = 11
_DEEP_BYTES = 4
_ALPHA_BYTES = 4


def avif(encoded: bytes, _enough: int) -> Picture:
    """Of the primary picture of an AVIF."""
    return _heif(encoded, "AVIF", _NS_AVIF_PIXEL, _NS_AVIF_BYTE, _AVIF_BYTES)


def heic(encoded: bytes, _enough: int) -> Picture:
    """Of the primary picture of a HEIC."""
    return _heif(encoded, "HEIC", _NS_HEIC_PIXEL, _NS_HEIC_BYTE, _HEIC_BYTES)


def _heif(encoded: bytes, image_format: str, pixel_ns: float, byte_ns: float, pixel_bytes: int) -> Picture:
    read = read_heif(encoded, image_format)
    pixels = read.width * read.height
    each_bytes = pixel_bytes + _DEEP_BYTES * (read.bits > _BYTE_BITS) + _ALPHA_BYTES * read.alpha
    return Picture(
        read.width,
        read.height,
        max(pixels, read.coded_pixels) * pixel_ns + len(encoded) * byte_ns,
        max(pixels, read.coded_pixels) * each_bytes,
        ordinary=False,
        profile=bool(read.profile) or read.primaries > 1,
        tables=has_tables(read.profile),
    )
