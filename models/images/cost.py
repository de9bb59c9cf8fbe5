"""Predict what a decode will cost, from an image's header and markers alone.

Small files can be expensive: a TIFF of 72 kB may hold 3125 tiles of 48 megapixels each. The prediction of a format is
an amount of work (samples, scans, tiles) times the seconds that its slowest content takes on one core, and pixels times
the bytes that its decoder allocates. It is an upper bound, not an average: `python -m benchmarks.decode_cost` prints
prediction and measurement for a corpus of such files, and ends with status 1 if a file costs more than predicted.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from models.images.decode import check_size
from models.images.formats import FORMATS, format_named, format_of
from models.interface.errors import EmptyImageError, TooCostlyError, UndecodableImageError, UnsupportedFormatError
from models.interface.request import ImageLimits

# Nanoseconds on one core of an Intel Xeon, by `python -m benchmarks.decode_cost`.
_NS_FOR_CONVERTED_PIXEL = 6.0
_NS_FOR_RESIZED_PIXEL = 4.0

_MIB = 2**20
# Rows and tables of decoders, and strips of rows during conversion.
_LEAST_BYTES = 10 * _MIB
# A strip of half a million pixels in RGBA, over white, and as an array.
_STRIP_BYTES = 8 * _MIB
# (H, W, 3) uint8.
_RGB_BYTES = 3


class DecodeCost(NamedTuple):
    """CPU seconds on one core and peak bytes of memory beyond the file itself, for a decode and the resize after it.

    `ordinary`: decoders handle such files every day, so a thread may decode it. `thread_bytes`: the memory that a
    decode takes there, which is less for JPEGs, because libjpeg-turbo reads them instead of Pillow.
    """

    seconds: float
    memory_bytes: int
    thread_bytes: int
    ordinary: bool


def predict(encoded: bytes, limits: ImageLimits, *, enough: int | None = None) -> DecodeCost:
    """Return an upper bound for the cost of decode.decode_strips(encoded, limits, enough=enough) and
    Transform.shape_strips, or without `enough` of decode.decode_pixels(encoded, limits). Takes microseconds, and about
    1 ms per MB for a JPEG of several scans, which has to be searched to its end.

    Raises EmptyImageError, UnsupportedFormatError, UndecodableImageError, TooManyPixelsError, TooElongatedError, and
    TooCostlyError if the cost is above `limits`.
    """
    if not encoded:
        raise EmptyImageError
    name = format_of(encoded)
    if name is None:
        raise UnsupportedFormatError(FORMATS)
    image_format = format_named(name)
    try:
        picture = image_format.cost(encoded, enough or 0)
    except (struct.error, IndexError) as error:
        raise UndecodableImageError(name, "its header is damaged") from error
    check_size(picture.width, picture.height, limits)
    pixels = picture.width * picture.height if picture.output_pixels is None else picture.output_pixels
    # What is kept of the strips: the whole picture, or its rows after resizing.
    kept_pixels = pixels if enough is None else max(picture.width, picture.height) * enough / 2
    other_bytes = min(_STRIP_BYTES, 16 * pixels) + _RGB_BYTES * kept_pixels + _LEAST_BYTES
    memory_bytes = int(picture.decoder_bytes + other_bytes)
    cost = DecodeCost(
        (picture.decoder_ns + pixels * (_NS_FOR_CONVERTED_PIXEL + _NS_FOR_RESIZED_PIXEL)) / 1e9,
        memory_bytes,
        memory_bytes if picture.thread_decoder_bytes is None else int(picture.thread_decoder_bytes + _LEAST_BYTES),
        image_format.in_threads and picture.ordinary,
    )
    if cost.seconds > limits.max_decode_seconds or cost.memory_bytes > limits.max_decode_bytes:
        raise TooCostlyError(
            name,
            f"it may take {cost.seconds:,.1f} s of CPU time and {cost.memory_bytes / 1e6:.0f} MB of memory, and "
            f"{limits.max_decode_seconds:g} s and {limits.max_decode_bytes / 1e6:.0f} MB are allowed",
        )
    return cost
