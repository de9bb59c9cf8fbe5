"""The image formats that are accepted. docs/development.md says how to add one."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from models.images import bmp, gif, heif, jpeg, png, tiff, webp
from models.images.costs import DecodeCost, Picture, cost_of
from models.interface.errors import EmptyImageError, UndecodableImageError, UnsupportedFormatError
from models.interface.extras import Package
from models.interface.request import ImageLimits


class ImageFormat(NamedTuple):
    """`name`: the name that users read. `pillow_name`: Pillow's. `suffixes`: endings of file names, in lower case.

    `signature`: regular expression for the first bytes, as Pillow accepts them. `strict_signature`: one that plain text
    does not match by accident, where `signature` is too short for that. `cost`: function of a file and `enough`, the
    pixels that the shorter side must keep, to the work of its decoder. `in_threads`: ordinary files are decoded in a
    decode thread; all others go to a decoder process. `package`: what the format needs, registered with Pillow in
    pillow_reading.py; files of a format whose package is missing are refused with the name of its extra.
    """

    name: str
    pillow_name: str
    suffixes: tuple[str, ...]
    signature: bytes
    cost: Callable[[bytes, int], Picture]
    in_threads: bool = False
    strict_signature: bytes | None = None
    package: Package | None = None


# Signatures are looked for in as many bytes.
SIGNATURE_BYTES = 32

PILLOW_HEIF = Package("pillow_heif", "pillow-heif", extra="heic")

# The brand of the file, or a general one and a particular one among the first that it is compatible with.
_AVIF = rb".{4}ftyp(?:avi[fs]|m[is]f1.{4}(?:.{4}){0,3}avi[fs])"

_ALL = (
    ImageFormat(
        "JPEG", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), rb"\xff\xd8\xff", jpeg.cost, in_threads=True
    ),
    # Without the bytes that follow, so that a damaged signature is called that.
    ImageFormat("PNG", "PNG", (".png", ".apng"), rb"\x89PNG", png.cost, in_threads=True),
    ImageFormat("WebP", "WEBP", (".webp",), rb"RIFF.{4}WEBP", webp.cost, in_threads=True),
    ImageFormat("GIF", "GIF", (".gif",), rb"GIF8", gif.cost, strict_signature=rb"GIF8[79]a"),
    # Its two reserved words are zeros, which Pillow does not check.
    ImageFormat("BMP", "BMP", (".bmp",), rb"BM", bmp.cost, strict_signature=rb"BM.{4}\0{4}"),
    # Also BigTIFF, in either byte order.
    ImageFormat("TIFF", "TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", tiff.cost),
    ImageFormat("AVIF", "AVIF", (".avif", ".avifs"), _AVIF, heif.avif_cost),
    ImageFormat(
        "HEIC",
        "HEIF",
        (".heic", ".heics", ".heif", ".heifs", ".hif"),
        rb".{4}ftyp(?:he[iv][cxms]|m[is]f1)",
        heif.heic_cost,
        package=PILLOW_HEIF,
    ),
)

TABLE = tuple(each for each in _ALL if each.package is None or each.package.installed)

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
        raise UnsupportedFormatError(FORMATS, _missing(encoded))
    return _BY_NAME[name]


def _missing(encoded: bytes) -> str | None:
    """Return the format that `encoded` would have if its package were installed, and what installs it."""
    for each in _ALL:
        if each.package is not None and re.match(each.signature, encoded, re.DOTALL):
            return f'{each.name}, which needs the extra "{each.package.extra}"'
    return None


def is_image(beginning: bytes | bytearray) -> bool:
    """Return whether the first SIGNATURE_BYTES of data of unknown kind are those of an image."""
    return _STRICT_SIGNATURE.match(beginning) is not None


def predict_cost(encoded: bytes, limits: ImageLimits, *, enough: int | None = None, whole: bool = False) -> DecodeCost:
    """Return an upper bound for the cost of decode.decode_strips(encoded, limits, enough=enough) and
    Transform.shape_strips; if `whole` or without `enough`, of its strips, assembled. Takes microseconds, and about 2 ms
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
    wanted = None if whole else enough
    return cost_of(picture, image_format.name, limits, enough=wanted, in_threads=image_format.in_threads)
