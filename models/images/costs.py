"""The cost of a decode and of what happens to the pixels afterwards, as an upper bound.

Small files can be expensive: a TIFF of 72 kB may hold 3125 tiles of 48 megapixels each. The prediction of a format is
an amount of work (samples, scans, tiles) times the seconds that its slowest content takes on one core, and pixels times
the bytes that its decoder allocates. It is an upper bound, not an average: `python -m benchmarks.decode_cost` prints
prediction and measurement for a corpus of such files, and ends with status 1 if a file costs more than predicted.
"""

from __future__ import annotations

from typing import NamedTuple

from models.interface.errors import TooCostlyError, TooElongatedError, TooManyPixelsError
from models.interface.request import ImageLimits

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
# computes a grid of at most 17 steps for each ink, or 33 for each of red, green and blue.
_COLOUR_NS = 80.0
_TABLES_PIXEL_NS = 45.0
_TABLES_NS = 8e7
_TABLES_BYTES = 32 * 2**20


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


def cost_of(
    picture: Picture, image_format: str, limits: ImageLimits, *, enough: int | None, in_threads: bool
) -> DecodeCost:
    """Return the cost of a picture, of which all pixels are wanted without `enough`. `in_threads`: decode threads read
    its format. Raises TooManyPixelsError, TooElongatedError, and TooCostlyError if the cost is above `limits`."""
    check_size(picture.width, picture.height, limits)
    pixels = picture.width * picture.height if picture.output_pixels is None else picture.output_pixels
    # What is kept of the strips: the whole picture, or its rows after resizing, and a copy for orientation.
    kept_pixels = pixels if enough is None else max(picture.width, picture.height) * enough
    # Colours are converted after the resize, unless the whole picture is wanted or tables do it.
    converted = pixels if enough is None else min(pixels, enough * enough)
    colour_ns = converted * _COLOUR_NS * picture.profile
    if picture.tables:
        colour_ns = _TABLES_NS + pixels * _TABLES_PIXEL_NS
    other_bytes = min(_STRIP_BYTES, 16 * pixels) + _RGB_BYTES * kept_pixels + _LEAST_BYTES
    memory_bytes = int(picture.decoder_bytes + other_bytes + _TABLES_BYTES * picture.tables)
    cost = DecodeCost(
        (picture.decoder_ns + pixels * (_CONVERSION_NS + _RESIZE_NS) + colour_ns) / 1e9,
        memory_bytes,
        memory_bytes if picture.thread_decoder_bytes is None else int(picture.thread_decoder_bytes + _LEAST_BYTES),
        # Of a request, LittleCMS gets no tables in a thread.
        in_threads and picture.ordinary and not picture.tables,
    )
    if cost.seconds > limits.max_decode_seconds or cost.memory_bytes > limits.max_decode_bytes:
        raise TooCostlyError(
            image_format,
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
