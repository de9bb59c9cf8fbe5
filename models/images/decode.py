"""Decode an image file to RGB pixels.

The result is the RGB that a person sees: EXIF orientation applied, transparency over white, the first frame of an
animation, 16 bits reduced to 8, and the conversion to sRGB for those who use the pixels (colour.py). libjpeg-turbo
decodes plain JPEGs without the GIL, and Pillow everything else. This module imports no torch, because decoder processes
(decoder_process.py) import it.
"""

from __future__ import annotations

import logging
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg

from models.images import colour
from models.images.colour import Conversion, Pixels
from models.images.costs import check_size
from models.images.formats import format_of, known_format
from models.images.jpeg import END_OF_IMAGE, Layout, read_jpeg
from models.images.pillow_reading import Opened, open_image, undecodable
from models.images.tiff import read_numbers
from models.images.to_rgb import strips
from models.interface.request import ImageLimits

# How a JPEG is read. fast: by libjpeg-turbo, which stops at any warning of libjpeg. tolerant: by Pillow, which
# continues after damage, with more CPU time and memory. either: fast, and tolerant if that fails.
JpegReader = Literal["fast", "tolerant", "either"]

_ORIENTATION = 0x0112
_EXIF_PREFIX = b"Exif\0\0"
_ORIENTATION_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# Orientations that swap width and height.
ON_ITS_SIDE = frozenset({5, 6, 7, 8})
# Formats, by Pillow's names, whose readers apply the orientation themselves.
_UPRIGHT = frozenset({"TIFF", "HEIF"})

# MPO: a JPEG to which a camera appends further pictures. The first one is used.
_JPEGS = frozenset({"JPEG", "MPO"})

_RGB_COMPONENTS, _CMYK_COMPONENTS = 3, 4


class Header(NamedTuple):
    """The header of a file: one of FORMATS, and the size in pixels after orientation."""

    format: str
    width: int
    height: int


class DamagedJpegError(Exception):
    """The fast JPEG reader has found damage; the tolerant one may still read the file."""


class Reduction(NamedTuple):
    """By how much the sides of a whole picture of `height` and `width` were reduced, and rounded up."""

    factor: int
    height: int
    width: int


class Strips(NamedTuple):
    """A decoded picture in strips of rows, (rows, width, 3) uint8 RGB each, before `orientation` (EXIF tag 0x0112) is
    applied, and before its colours are converted to sRGB: after a resize that takes fewer pixels. The size
    after a resize depends on that of the whole picture, if this is a reduced one: `reduction`."""

    height: int
    width: int
    orientation: int
    strips: Iterator[Pixels]
    conversion: Conversion | None = None
    reduction: Reduction | None = None

    def assembled(self) -> Pixels:
        """Return the picture, (H, W, 3) uint8 sRGB, contiguous, with `orientation` applied."""
        pixels = first = next(self.strips)
        if len(first) < self.height:
            pixels, top = np.empty((self.height, self.width, 3), np.uint8), 0
            for strip in chain([first], self.strips):
                pixels[top : top + len(strip)] = strip
                top += len(strip)
        if self.conversion is not None:
            pixels = self.conversion.apply(pixels)
        return oriented(pixels, self.orientation)


def ignore_pillow_warnings() -> None:
    """Silence Pillow's log lines and warnings in this process. For processes that decode untrusted files: Pillow warns
    of each damaged tag, and Python keeps the text of each warning."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_strips(
    encoded: bytes, limits: ImageLimits, *, enough: int | None = None, jpeg_reader: JpegReader = "either"
) -> Strips:
    """Return the picture in `encoded`, in strips, so that a large one is never in memory as a whole.

    A JPEG much larger than needed may be decoded at a reduced size, its shorter side never under `enough` pixels:
    libjpeg-turbo then computes fewer coefficients of each block, at a fraction of the cost. Without it, full size.

    Raises EmptyImageError, UnsupportedFormatError, TooManyPixelsError, TooElongatedError and UndecodableImageError,
    here or with the first strip; the fast reader raises DamagedJpegError, too. What a decode may cost is not checked
    here: call predict_cost before.
    """
    image_format = format_of(encoded)
    if image_format == "JPEG":
        layout = read_jpeg(encoded)
        if jpeg_reader != "tolerant":
            try:
                return _decode_jpeg(encoded, layout, limits, enough or 0)
            except DamagedJpegError:
                if jpeg_reader == "fast":
                    raise
        encoded = _completed(encoded, layout)
    opened = open_image(encoded)
    image = opened.image
    check_size(image.width, image.height, limits)
    height, width = image.height, image.width
    with undecodable(image_format):
        if enough and image.format in _JPEGS and not layout.lossless:
            # Pillow reduces the size as well. libjpeg-turbo cannot reduce a lossless JPEG, and may crash.
            image.draft(None, (enough, enough))
        image.load()
        return Strips(
            image.height,
            image.width,
            _orientation_of(opened),
            strips(opened, image_format),
            opened.conversion(),
            Reduction(round(height / image.height), height, width) if image.height < height else None,
        )


def read_header(encoded: bytes) -> Header:
    """Return the header of `encoded`, without a decode. Raises EmptyImageError, UnsupportedFormatError,
    UndecodableImageError."""
    opened = open_image(encoded)
    image = opened.image
    width, height = image.size
    if _orientation_of(opened) in ON_ITS_SIDE:
        width, height = height, width
    return Header(known_format(encoded).name, width, height)


def _decode_jpeg(encoded: bytes, layout: Layout, limits: ImageLimits, enough: int) -> Strips:
    """Decode by libjpeg-turbo. Raises DamagedJpegError for what it does not read, or warns of."""
    check_size(layout.width, layout.height, limits)
    if not layout.plain:
        raise DamagedJpegError
    reduction = layout.reduction(enough)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            # libjpeg-turbo warns if pixels are missing, but also if only the marker behind them is.
            encoded if layout.complete else encoded + END_OF_IMAGE,
            "RGB",
            # Exactly this reduction: none is smaller, and none larger keeps so many pixels.
            min_height=-(-layout.height // reduction),
            min_width=-(-layout.width // reduction),
            min_factor=reduction,
        )
    except ValueError as error:
        raise DamagedJpegError from error
    height, width, _ = pixels.shape
    conversion = colour.from_profile(layout.profile) if len(layout.components) == _RGB_COMPONENTS else None
    return Strips(
        height,
        width,
        _orientation(layout.exif, layout.xmp),
        iter([pixels]),
        conversion,
        Reduction(reduction, layout.height, layout.width) if reduction > 1 else None,
    )


def _completed(encoded: bytes, layout: Layout) -> bytes:
    """Return a JPEG that only Pillow reads with the marker at its end, if it lacks no more than that. Pillow refuses a
    file without the marker, and with it fills missing pixels with grey."""
    if layout.complete or layout.plain or layout.lossless:
        return encoded
    colours = "CMYK" if len(layout.components) == _CMYK_COMPONENTS else "RGB"
    with suppress(ValueError):
        # At the smallest size, which decodes every byte of the file all the same.
        simplejpeg.decode_jpeg(encoded + END_OF_IMAGE, colours, min_height=1, min_width=1, min_factor=8)
        return encoded + END_OF_IMAGE
    return encoded


def _orientation_of(opened: Opened) -> int:
    """Return the EXIF orientation that is left to apply, 1 to 8."""
    if opened.image.format in _UPRIGHT:
        return 1
    return _orientation(opened.exif.removeprefix(_EXIF_PREFIX), opened.xmp)


def _orientation(exif: bytes, xmp: bytes) -> int:
    """Return EXIF tag 0x0112, or the orientation in XMP if EXIF has none; 1 if neither has."""
    if exif:
        # Damaged metadata does not invalidate the image. Some programs write the prefix twice.
        with suppress(struct.error):
            numbers = read_numbers(exif.removeprefix(_EXIF_PREFIX), {_ORIENTATION})
            if _ORIENTATION in numbers:
                return numbers[_ORIENTATION]
    match = _ORIENTATION_IN_XMP.search(xmp)
    return 1 if match is None else int(match[1])


def oriented(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the camera's rotation: the eight cases of EXIF tag 0x0112 (Exif 2.32, table 4.6.4 A). The result is
    contiguous."""
    if orientation == 1:
        return pixels
    if orientation in ON_ITS_SIDE:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    # Not ascontiguousarray, which keeps a negative stride of a single row or column: PyTorch refuses it.
    return pixels.copy()
