"""Decode an image file to RGB pixels.

The result is the RGB that a person sees: EXIF orientation applied, transparency over white, the first frame of an
animation, 16 bits reduced to 8. Colour profiles are not applied, as in the pipelines that models are trained with.
libjpeg-turbo decodes plain JPEGs without the GIL, and Pillow everything else. This module imports no torch, because
decoder processes (decoder_process.py) import it.
"""

from __future__ import annotations

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from models.images.formats import check_size, format_of, known_format
from models.images.headers import read_jpeg, read_tiff_numbers
from models.interface.errors import UndecodableImageError
from models.interface.request import ImageLimits

Pixels = NDArray[np.uint8]

# How a JPEG is read. fast: by libjpeg-turbo, which stops at any warning of libjpeg. tolerant: by Pillow, which
# continues after damage, with more CPU time and memory. either: fast, and tolerant if that fails.
JpegReader = Literal["fast", "tolerant", "either"]

_ORIENTATION = 0x0112
_EXIF_PREFIX = b"Exif\0\0"
_ORIENTATION_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# Orientations that swap width and height.
ON_ITS_SIDE = frozenset({5, 6, 7, 8})
_LARGEST_16_BIT = 65535

# Tags of a TIFF, and a value of the second (TIFF 6.0, section 8). Pillow assumes that value where the tag is missing.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC_INTERPRETATION = 262
_WHITE_IS_ZERO = 0

# Pixels converted at once. Conversions copy their input; strips avoid a second copy of a large image.
_STRIP_PIXELS = 500_000

# MPO: a JPEG to which a camera appends further pictures. The first one is used.
_JPEGS = frozenset({"JPEG", "MPO"})

# Factors under 2 may take longer than decoding the whole (simplejpeg's documentation).
_LEAST_REDUCTION = 2

# Calls of `read` until width and height are known. The pixels may take as many again, or one for each _BYTES_OF_A_READ
# of the file in addition: a PNG in chunks of 200 bytes stays below both limits.
_MOST_HEADER_READS = 4_000
_BYTES_OF_A_READ = 64
_MOST_BYTES_READ = 2**31

# Exceptions of Pillow's readers for damaged files.
_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    # The GIF and WebP readers apply Pillow's process-wide limit themselves.
    Image.DecompressionBombError,
)

# Import Pillow's readers now, and not during the first request.
Image.init()


class Header(NamedTuple):
    """The header of a file: one of FORMATS, and the size in pixels after orientation."""

    format: str
    width: int
    height: int


class DamagedJpegError(Exception):
    """The fast JPEG reader has found damage; the tolerant one may still read the file."""


class Strips(NamedTuple):
    """A decoded picture in strips of rows, (rows, width, 3) uint8 RGB each, before `orientation` (EXIF tag 0x0112) is
    applied."""

    height: int
    width: int
    orientation: int
    strips: Iterator[Pixels]

    def assembled(self) -> Pixels:
        """Return the picture, (H, W, 3) uint8 RGB, contiguous, with `orientation` applied."""
        pixels = first = next(self.strips)
        if len(first) < self.height:
            pixels, top = np.empty((self.height, self.width, 3), np.uint8), 0
            for strip in chain([first], self.strips):
                pixels[top : top + len(strip)] = strip
                top += len(strip)
        return oriented(pixels, self.orientation)


def ignore_pillow_warnings() -> None:
    """Silence Pillow's log lines and warnings in this process. For processes that decode untrusted files: Pillow warns
    of each damaged tag, and Python keeps the text of each warning."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_pixels(
    encoded: bytes, limits: ImageLimits, *, enough: int | None = None, jpeg_reader: JpegReader = "either"
) -> Pixels:
    """Return the picture in `encoded` as (H, W, 3) uint8 RGB.

    A JPEG much larger than needed may be decoded at a reduced size, its shorter side never under `enough` pixels:
    libjpeg-turbo then computes fewer coefficients of each block, at a fraction of the cost. Without it, full size.

    Raises EmptyImageError, UnsupportedFormatError, TooManyPixelsError, TooElongatedError, UndecodableImageError, and
    DamagedJpegError from the fast reader. What a decode may cost is not checked here: call predict_cost before.
    """
    return decode_strips(encoded, limits, enough=enough, jpeg_reader=jpeg_reader).assembled()


def decode_strips(
    encoded: bytes, limits: ImageLimits, *, enough: int | None = None, jpeg_reader: JpegReader = "either"
) -> Strips:
    """Return what `decode_pixels` does, in strips, so that a large picture is never in memory as a whole. Errors are
    raised here or with the first strip."""
    image_format = format_of(encoded)
    if image_format == "JPEG" and jpeg_reader != "tolerant":
        try:
            return _decode_jpeg(encoded, limits, enough or 0)
        except DamagedJpegError:
            if jpeg_reader == "fast":
                raise
    image = _open(encoded)
    check_size(image.width, image.height, limits)
    with _undecodable(image_format):
        if enough and image.format in _JPEGS:
            # Pillow reduces the size as well.
            image.draft(None, (enough, enough))
        image.load()
        # After the decode, because a PNG may have its EXIF data after its pixels.
        return Strips(image.height, image.width, _orientation_of(image), _strips(image, image_format))


def read_header(encoded: bytes) -> Header:
    """Return the header of `encoded`, without a decode. Raises EmptyImageError, UnsupportedFormatError,
    UndecodableImageError."""
    image = _open(encoded)
    width, height = image.size
    if _orientation_of(image) in ON_ITS_SIDE:
        width, height = height, width
    return Header("JPEG" if image.format in _JPEGS else str(image.format), width, height)


def _open(encoded: bytes) -> Image.Image:
    image_format = known_format(encoded).name
    # headers.py counts the segments of a JPEG.
    file = BytesIO(encoded) if image_format == "JPEG" else _MeteredFile(encoded)
    # Not Image.open, which applies Pillow's process-wide size limit; ImageLimits decides here.
    reader, _ = Image.OPEN[image_format]
    with _undecodable(image_format):
        image = reader(file, "")
    if isinstance(file, _MeteredFile):
        file.grant_pixels(image)
    return image


@contextmanager
def _undecodable(image_format: str | None) -> Iterator[None]:
    """Turn errors of Pillow's readers into UndecodableImageError."""
    try:
        yield
    except _DECODE_ERRORS as error:
        raise UndecodableImageError(image_format, str(error).strip().rstrip(".") or type(error).__name__) from error


def _decode_jpeg(encoded: bytes, limits: ImageLimits, enough: int) -> Strips:
    """Decode by libjpeg-turbo. Raises DamagedJpegError for what it does not read, or warns of."""
    layout = read_jpeg(encoded)
    check_size(layout.width, layout.height, limits)
    if not layout.plain:
        raise DamagedJpegError
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            encoded, "RGB", min_height=enough, min_width=enough, min_factor=_LEAST_REDUCTION if enough else 1
        )
    except ValueError as error:
        raise DamagedJpegError from error
    height, width, _ = pixels.shape
    return Strips(height, width, _orientation(layout.exif, layout.xmp), iter([pixels]))


def _orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of a picture that Pillow has decoded, 1 to 8."""
    if image.format == "TIFF":
        # Pillow applies the orientation of TIFFs itself.
        return 1
    info = image.info
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    exif = info.get("exif") or _exif_in_text(info.get("Raw profile type exif"))
    return _orientation(exif.removeprefix(_EXIF_PREFIX), xmp if isinstance(xmp, bytes) else xmp.encode())


def _orientation(exif: bytes, xmp: bytes) -> int:
    """Return EXIF tag 0x0112, or the orientation in XMP if EXIF has none; 1 if neither has."""
    if exif:
        # Damaged metadata does not invalidate the image. Some programs write the prefix twice.
        with suppress(struct.error):
            numbers = read_tiff_numbers(exif.removeprefix(_EXIF_PREFIX), {_ORIENTATION})
            if _ORIENTATION in numbers:
                return numbers[_ORIENTATION]
    match = _ORIENTATION_IN_XMP.search(xmp)
    return 1 if match is None else int(match[1])


def _exif_in_text(text: str | None) -> bytes:
    """Return EXIF data that ImageMagick wrote into a PNG as text: a name, a length, then hexadecimal digits."""
    try:
        return b"" if text is None else bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


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


def _strips(image: Image.Image, image_format: str | None) -> Iterator[Pixels]:
    with _undecodable(image_format):
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers of unknown range")
        convert = _from_16_bit(image) if image.mode.startswith("I") else _over_white
        rows = max(1, _STRIP_PIXELS // image.width)
        if rows >= image.height:
            yield convert(image)
            return
        for top in range(0, image.height, rows):
            yield convert(image.crop((0, top, image.width, min(top + rows, image.height))))


def _over_white(image: Image.Image) -> Pixels:
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return np.array(white)


def _from_16_bit(image: Image.Image) -> Callable[[Image.Image], Pixels]:
    if image.mode == "I":
        least, most = np.ravel(image.getextrema())
        if least < 0 or most > _LARGEST_16_BIT:
            raise ValueError("its pixels have more than 16 bits")
    tags = getattr(image, "tag_v2", None)
    # Pillow inverts such TIFFs with 8 bits, but not with 16.
    inverted = tags is not None and tags.get(_PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    bits = 12 if tags is not None and tags.get(_BITS_PER_SAMPLE) == (12,) else 16

    def convert(strip: Image.Image) -> Pixels:
        grey = np.asarray(strip)
        if inverted:
            grey = _LARGEST_16_BIT - grey
        # Keep the upper eight bits; Pillow's conversion would clip everything above 255 to white.
        return np.repeat((grey >> (bits - 8)).astype(np.uint8)[:, :, None], 3, axis=2)

    return convert


class _MeteredFile(BytesIO):
    """An encoded image for Pillow, which reads tag by tag in Python and holds the GIL meanwhile. `read` raises
    UndecodableImageError after too many calls or bytes: a defence against endless tags and chunks."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self._file_bytes = len(encoded)
        self._reads_left = _MOST_HEADER_READS
        self._bytes_left = _MOST_BYTES_READ

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(piece)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise UndecodableImageError(None, "it consists of too many pieces")
        return piece

    def grant_pixels(self, image: Image.Image) -> None:
        """Allow as many reads as the pixels may need. Pillow reads each run of a BMP by two reads."""
        in_runs = any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", ()))
        runs = image.width * image.height if in_runs else 0
        self._reads_left = _MOST_HEADER_READS + max(runs, self._file_bytes // _BYTES_OF_A_READ)
