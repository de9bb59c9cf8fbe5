"""The image formats that are accepted, and what a decode will cost. docs/development.md says how to add a format.

Small files can be expensive: a TIFF of 72 kB may hold 3125 tiles of 48 megapixels each. The prediction of a format is
an amount of work (samples, scans, tiles) times the seconds that its slowest content takes on one core, and pixels times
the bytes that its decoder allocates. It is an upper bound, not an average: `python -m benchmarks.decode_cost` prints
prediction and measurement for a corpus of such files, and ends with status 1 if a file costs more than predicted.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

from models.images import format_costs, tiff_cost
from models.images.format_costs import Picture
from models.interface.errors import (
    EmptyImageError,
    TooCostlyError,
    TooElongatedError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedFormatError,
)
from models.interface.request import ImageLimits


class ImageFormat(NamedTuple):
    """`name`: the name that users read. `pillow_name`: Pillow's. `suffixes`: endings of file names, in lower case.

    `signature`: regular expression for the first bytes, as Pillow accepts them. `strict_signature`: one that plain text
    does not match by accident, where `signature` is too short for that. `cost`: function of a file and `enough`, the
    pixels that the shorter side must keep, to the work of its decoder. `in_threads`: ordinary files are decoded in a
    decode thread; all others go to a decoder process.
    """

    name: str
    pillow_name: str
    suffixes: tuple[str, ...]
    signature: bytes
    cost: Callable[[bytes, int], Picture]
    in_threads: bool = False
    strict_signature: bytes | None = None


# Signatures are looked for in as many bytes.
SIGNATURE_BYTES = 32

# The brand of the file, or a general one and a particular one among the first that it is compatible with.
_AVIF = rb".{4}ftyp(?:avi[fs]|m[is]f1.{4}(?:.{4}){0,3}avi[fs])"
# Read where the extra `heic` is installed.
_HEIC = ImageFormat(
    "HEIC",
    "HEIF",
    (".heic", ".heics", ".heif", ".heifs", ".hif"),
    rb".{4}ftyp(?:he[iv][cxms]|m[is]f1)",
    format_costs.heic,
)

TABLE: tuple[ImageFormat, ...] = (
    ImageFormat(
        "JPEG", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), rb"\xff\xd8\xff", format_costs.jpeg, in_threads=True
    ),
    # Without the bytes that follow, so that a damaged signature is called that.
    ImageFormat("PNG", "PNG", (".png", ".apng"), rb"\x89PNG", format_costs.png, in_threads=True),
    ImageFormat("WebP", "WEBP", (".webp",), rb"RIFF.{4}WEBP", format_costs.webp, in_threads=True),
    ImageFormat("GIF", "GIF", (".gif",), rb"GIF8", format_costs.gif, strict_signature=rb"GIF8[79]a"),
    # Its two reserved words are zeros, which Pillow does not check.
    ImageFormat("BMP", "BMP", (".bmp",), rb"BM", format_costs.bmp, strict_signature=rb"BM.{4}\0{4}"),
    # Also BigTIFF, in either byte order.
    ImageFormat("TIFF", "TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", tiff_cost.tiff),
    ImageFormat("AVIF", "AVIF", (".avif", ".avifs"), _AVIF, format_costs.avif),
    *((_HEIC,) if find_spec("pillow_heif") else ()),
)

# Nanoseconds for a pixel on one core of an Intel Xeon, by `python -m benchmarks.decode_cost`.
_CONVERSION_NS = 6.0
_RESIZE_NS = 4.0
# Rows and tables of decoders, and strips of rows during conversion.
_LEAST_BYTES = 10 * 2**20
# A strip of half a million pixels in RGBA, over white, and as an array.
_STRIP_BYTES = 8 * 2**20
# (H, W, 3) uint8.
_RGB_BYTES = 3
# Conversion of a pixel to sRGB by models/images/colour.py. By LittleCMS also a start, in which it reads the tables and
# computes a grid of at most 17 steps for each ink.
_COLOUR_NS = 80.0
_TABLES_PIXEL_NS = 45.0
_TABLES_NS = 8e7
_TABLES_BYTES = 16 * 2**20

FORMATS = tuple(each.name for each in TABLE)
PILLOW_NAMES = {each.name: each.pillow_name for each in TABLE}
SUFFIXES = frozenset(suffix for each in TABLE for suffix in each.suffixes)

_BY_NAME = {each.name: each for each in TABLE}
_SIGNATURE = re.compile(b"|".join(b"(?P<%s>%s)" % (each.name.encode(), each.signature) for each in TABLE), re.DOTALL)
_STRICT_SIGNATURE = re.compile(b"|".join(each.strict_signature or each.signature for each in TABLE), re.DOTALL)


def format_of(encoded: bytes) -> str | None:
    """Return the name of the format whose signature `encoded` begins with, one of FORMATS; None for anything else."""
    found = _SIGNATURE.match(encoded)
    return None if found is None else found.lastgroup


def known_format(encoded: bytes) -> ImageFormat:
    """Return the format of `encoded`. Raises EmptyImageError, UnsupportedFormatError."""
    if not encoded:
        raise EmptyImageError
    name = format_of(encoded)
    if name is None:
        needs = 'HEIC, which needs the extra "heic"' if re.match(_HEIC.signature, encoded, re.DOTALL) else None
        raise UnsupportedFormatError(FORMATS, needs)
    return _BY_NAME[name]


def is_image(beginning: bytes | bytearray) -> bool:
    """Return whether the first SIGNATURE_BYTES of data of unknown kind are those of an image."""
    return _STRICT_SIGNATURE.match(beginning) is not None


class DecodeCost(NamedTuple):
    """CPU seconds on one core and peak bytes of memory beyond the file itself, for a decode and the resize after it.

    `ordinary`: decoders handle such files every day, so a thread may decode it. `thread_bytes`: its memory there, less
    for JPEGs, because libjpeg-turbo reads them instead of Pillow.
    """

    seconds: float
    memory_bytes: int
    thread_bytes: int
    ordinary: bool


# The cost of ready pixels.
FREE = DecodeCost(0.0, 0, 0, ordinary=True)


def predict_cost(encoded: bytes, limits: ImageLimits, *, enough: int | None = None, whole: bool = False) -> DecodeCost:
    """Return an upper bound for the cost of decode.decode_strips(encoded, limits, enough=enough) and
    Transform.shape_strips; if `whole` or without `enough`, of decode.decode_pixels. Takes microseconds, and about 1 ms
    per MB for a JPEG of several scans, which has to be searched to its end.

    Raises EmptyImageError, UnsupportedFormatError, UndecodableImageError, TooManyPixelsError, TooElongatedError, and
    TooCostlyError if the cost is above `limits`.
    """
    image_format = known_format(encoded)
    try:
        picture = image_format.cost(encoded, enough or 0)
    except (struct.error, IndexError) as error:
        raise UndecodableImageError(image_format.name, "its header is damaged") from error
    if not picture.width or not picture.height:
        raise UndecodableImageError(image_format.name, "it has no pixels")
    check_size(picture.width, picture.height, limits)
    pixels = picture.width * picture.height if picture.output_pixels is None else picture.output_pixels
    # What is kept of the strips: the whole picture, or its rows after resizing, and a copy for orientation.
    kept_pixels = pixels if whole or enough is None else max(picture.width, picture.height) * enough
    # Colours are converted after the resize, unless the whole picture is wanted.
    converted = 0 if not picture.profile else pixels if whole or enough is None else min(pixels, enough * enough)
    colour_ns = _TABLES_NS + pixels * _TABLES_PIXEL_NS if picture.tables else converted * _COLOUR_NS
    other_bytes = min(_STRIP_BYTES, 16 * pixels) + _RGB_BYTES * kept_pixels + _LEAST_BYTES
    memory_bytes = int(picture.decoder_bytes + other_bytes + _TABLES_BYTES * picture.tables)
    cost = DecodeCost(
        (picture.decoder_ns + pixels * (_CONVERSION_NS + _RESIZE_NS) + colour_ns) / 1e9,
        memory_bytes,
        memory_bytes if picture.thread_decoder_bytes is None else int(picture.thread_decoder_bytes + _LEAST_BYTES),
        # LittleCMS gets no untrusted tables in a thread.
        image_format.in_threads and picture.ordinary and not picture.tables,
    )
    if cost.seconds > limits.max_decode_seconds or cost.memory_bytes > limits.max_decode_bytes:
        raise TooCostlyError(
            image_format.name,
            f"it may take {cost.seconds:,.1f} s of CPU time and {cost.memory_bytes / 1e6:.0f} MB of memory, and "
            f"{limits.max_decode_seconds:g} s and {limits.max_decode_bytes / 1e6:.0f} MB are allowed",
        )
    return cost


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raises TooManyPixelsError, TooElongatedError."""
    if width * height > limits.max_pixels:
        raise TooManyPixelsError(width, height, limits.max_pixels)
    if max(width, height) > limits.max_aspect_ratio * max(1, min(width, height)):
        raise TooElongatedError(width, height, limits.max_aspect_ratio)
