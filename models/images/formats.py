"""The image formats that are accepted. Detection, error messages, OpenAPI and folder jobs read them from one table.

To accept another format, write its cost function in format_costs.py and add one entry to TABLE. Further places name the
formats: docs/development.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from models.images import format_costs
from models.images.format_costs import Picture


class ImageFormat(NamedTuple):
    """One format.

    `name`: Pillow's name. `title`: the name that users read. `suffixes`: endings of file names, in lower case.
    `signature`: regular expression for the first bytes, as Pillow accepts them. `strict_signature`: one that plain text
    does not match by accident, where `signature` is too short for that.
    `cost`: function of a file and `enough`, the pixels that the shorter side must keep, to the work of its decoder.
    `in_threads`: ordinary files are decoded in a decode thread; all others go to a decoder process.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    signature: bytes
    cost: Callable[[bytes, int], Picture]
    in_threads: bool = False
    strict_signature: bytes | None = None


# Signatures are looked for in as many bytes.
SIGNATURE_BYTES = 12

TABLE = (
    ImageFormat(
        "JPEG",
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        rb"\xff\xd8\xff",
        format_costs.jpeg,
        in_threads=True,
    ),
    ImageFormat("PNG", "PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n", format_costs.png, in_threads=True),
    ImageFormat("WEBP", "WebP", (".webp",), rb"RIFF.{4}WEBP", format_costs.webp, in_threads=True),
    ImageFormat("GIF", "GIF", (".gif",), rb"GIF8[79]a", format_costs.gif),
    # Its two reserved words are zeros, which Pillow does not check.
    ImageFormat("BMP", "BMP", (".bmp",), rb"BM", format_costs.bmp, strict_signature=rb"BM.{4}\0{4}"),
    # Also BigTIFF, in either byte order.
    ImageFormat("TIFF", "TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", format_costs.tiff),
)

FORMATS = tuple(each.name for each in TABLE)
TITLES = tuple(each.title for each in TABLE)
SUFFIXES = frozenset(suffix for each in TABLE for suffix in each.suffixes)

_BY_NAME = {each.name: each for each in TABLE}
_SIGNATURE = re.compile(b"|".join(b"(?P<%s>%s)" % (each.name.encode(), each.signature) for each in TABLE), re.DOTALL)
_STRICT_SIGNATURE = re.compile(b"|".join(each.strict_signature or each.signature for each in TABLE), re.DOTALL)


def format_named(name: str) -> ImageFormat:
    """Return the format of that name, one of FORMATS."""
    return _BY_NAME[name]


def format_of(encoded: bytes) -> str | None:
    """Return the name of the format whose signature `encoded` begins with, one of FORMATS; None for anything else."""
    found = _SIGNATURE.match(encoded)
    return None if found is None else found.lastgroup


def is_image(beginning: bytes | bytearray) -> bool:
    """Return whether the first SIGNATURE_BYTES of data of unknown kind are those of an image."""
    return _STRICT_SIGNATURE.match(beginning) is not None
