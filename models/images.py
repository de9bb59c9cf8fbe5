"""Bytes to pixels: format, size and shape are known from the header and held to limits before any decode.

What comes out is the RGB that a person sees: EXIF orientation applied, transparency over white, the first frame
of an animation, 16 bits brought to 8. Colour profiles are not applied, as in the pipelines models are trained with.
JPEG goes through libjpeg-turbo with the GIL released; all else through Pillow.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from io import BytesIO
from traceback import clear_frames
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models import image_bombs, jpeg_bombs, memory
from models.errors import (
    EmptyImageError,
    TooElongatedError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedFormatError,
)
from models.limits import ImageLimits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

Pixels = NDArray[np.uint8]

_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
_LARGEST_16_BIT = 65535

# Tags of a TIFF, and what one of them says (TIFF 6.0, section 8); Pillow takes this for granted where it is missing.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC_INTERPRETATION = 262
_WHITE_IS_ZERO = 0

_CPU = torch.device("cpu")

# Converted at once: what of a picture is there twice.
_STRIP_PIXELS = 1_000_000

# Some times more than pictures usually have.
_MANY_PIXELS = 8_000_000

# Cameras append further pictures to a JPEG and call it MPO; the first is what a person sees.
_JPEGS = frozenset({"JPEG", "MPO"})

# Factors under 2 may take longer than decoding the whole (simplejpeg's documentation).
_LEAST_REDUCTION = 2

# What Pillow's readers raise on bytes that lie: they are not of one mind.
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
)

# ImageLimits stands in for it: checked on the header, with an error that names width and height.
Image.MAX_IMAGE_PIXELS = None

# It writes a line for each tag of a TIFF that lies, or a warning that Python remembers for good. Who has sent a file is
# told what is wrong with it.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow would import its readers at the first image that it does not know, in the middle of a request.
Image.init()


def decode_image(encoded: bytes, limits: ImageLimits, *, enough: int | None = None) -> torch.Tensor:
    """The picture in `encoded` as a (3, H, W) uint8 RGB tensor on the CPU, channels last in memory.

    A JPEG much larger than needed may come out reduced, its shorter side never under `enough` pixels: libjpeg-turbo
    then computes fewer coefficients of each block, at a fraction of the cost. Without it, full size.

    Raises EmptyImageError, UnsupportedFormatError, TooManyPixelsError, TooElongatedError, UndecodableImageError.
    """
    if not encoded:
        raise EmptyImageError
    image = _open(encoded)
    _check(image.width, image.height, limits)
    image_bombs.check_opened(image, limits)
    large = image.width * image.height > _MANY_PIXELS
    try:
        pixels = _decode(image, encoded, enough or 0)
    except _DECODE_ERRORS as error:
        refusal = UndecodableImageError(image.format, _reason(error))
        del image
        if large:
            _clear_frames(error)
            memory.give_back(_CPU)
        raise refusal from error
    if large and pixels.nbytes > _MANY_PIXELS:
        # What Pillow took for it is free and kept, for forwards (models/memory.py): one picture of 30 megapixels would
        # make the process larger by 120 MB for good.
        del image
        memory.give_back(_CPU)
    # Turned before it is a tensor: PyTorch would let the GIL go for it, and wait to have it back.
    return torch.from_numpy(np.ascontiguousarray(pixels).transpose(2, 0, 1))


class Header(NamedTuple):
    """What a file says of its picture: one of FORMATS, and the size in pixels as a person sees it."""

    format: str
    width: int
    height: int


def read_header(encoded: bytes) -> Header:
    """The header of `encoded`, without a decode. Raises EmptyImageError, UnsupportedFormatError,
    UndecodableImageError."""
    if not encoded:
        raise EmptyImageError
    image = _open(encoded)
    width, height = image.size
    # Pillow turns TIFFs by itself, and their size as well.
    if image.format != "TIFF" and _orientation(image) in _ON_ITS_SIDE:
        width, height = height, width
    return Header("JPEG" if image.format in _JPEGS else str(image.format), width, height)


def _open(encoded: bytes) -> Image.Image:
    if encoded.startswith(jpeg_bombs.SIGNATURE):
        jpeg_bombs.check_markers(encoded)
        return _opened(BytesIO(encoded))
    file = image_bombs.MeteredFile(encoded)
    image = _opened(file)
    file.grant_pixels(image)
    return image


def _opened(file: BytesIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnsupportedFormatError(FORMATS) from error
    except _DECODE_ERRORS as error:
        # A format read here, whose header is refused: a PNG with text that unpacks to megabytes, for one.
        raise UndecodableImageError(None, _reason(error)) from error


def _check(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise TooManyPixelsError(width, height, limits.max_pixels)
    if max(width, height) > limits.max_aspect_ratio * max(1, min(width, height)):
        raise TooElongatedError(width, height, limits.max_aspect_ratio)


def _decode(image: Image.Image, encoded: bytes, enough: int) -> Pixels:
    pixels = _decode_jpeg(encoded, enough) if image.format in _JPEGS and image.mode in {"RGB", "L"} else None
    if pixels is None:
        pixels = _as_seen(image)
    # Asked for after the decode: Pillow turns TIFFs by itself and then takes the tag away.
    return _orient(pixels, _orientation(image))


def _decode_jpeg(encoded: bytes, enough: int) -> Pixels | None:
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            encoded, "RGB", min_height=enough, min_width=enough, min_factor=_LEAST_REDUCTION if enough else 1
        )
    except ValueError:
        # It stops at whatever libjpeg warns of; Pillow reads on where a person would still see the picture.
        return None
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DECODE_ERRORS:
        # A photograph with broken metadata is still a photograph.
        return 1


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the camera's rotation: the eight cases of EXIF tag 0x0112 (Exif 2.32, table 4.6.4 A)."""
    if orientation in _ON_ITS_SIDE:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return pixels


def _as_seen(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    image.load()
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        return np.array(_over_white(image))
    # Whole, each conversion would make a copy of all of it.
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(_over_white(image.crop((0, top, image.width, bottom))))
    return pixels


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _from_16_bit(image: Image.Image) -> Pixels:
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > _LARGEST_16_BIT:
        raise ValueError("its pixels have more than 16 bits")
    tags = getattr(image, "tag_v2", None)
    if tags is not None and tags.get(_PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO) == _WHITE_IS_ZERO:
        # Pillow turns it over where there are eight bits, and leaves it here.
        grey = _LARGEST_16_BIT - grey
    bits = 12 if tags is not None and tags.get(_BITS_PER_SAMPLE) == (12,) else 16
    # The upper eight bits; Pillow's own conversion would clip everything over 255 to white.
    eight_bit = (grey >> (bits - 8)).astype(np.uint8)
    return np.repeat(eight_bit[:, :, None], 3, axis=2)


def _clear_frames(error: BaseException | None) -> None:
    """Those that it, and what led to it, came through hold the picture for as long as somebody holds the error."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__context__


def _reason(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__
