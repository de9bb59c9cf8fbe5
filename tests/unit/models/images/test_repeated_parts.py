"""Whatever part of a file is repeated, the serving process reads it in a bounded number of steps, or refuses it.

Small parts make parsers in Python slow: a file of 20 MB has room for millions of them. So each part of a file of each
format is repeated, or gets more contents, until the file has 2 MB. Bytes that are allocated are counted, and lines of
Python that are executed: a busy machine does not change either.
"""

from __future__ import annotations

import struct
import sys
import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from types import FrameType
from typing import Any, NamedTuple

import pytest
from PIL import Image, PngImagePlugin

import models.images.pillow_reading  # noqa: F401 - registers the writer of HEIC
from models.images.decode import DamagedJpegError, decode_strips
from models.images.formats import FORMATS, PILLOW_NAMES, predict_cost
from models.images.samples import draw
from models.interface.errors import ImageError
from models.interface.request import ImageLimits

_LIMITS = ImageLimits()
_ADDED_BYTES = 2_000_000
# Some 50 ns each.
_MOST_LINES = 500_000
# Files are copied without their metadata, and to libpng; tables of properties are as large as what states them.
_MOST_BYTES = 3 * _ADDED_BYTES
# Contents that parsers skip, search, or hand to a decompressor: the last is a stored block of no bytes.
_FILLINGS = (b"\0", b"\n", b"\xff", b"\xff\0", b"\0\0\0\xff\xff")


class _Size(NamedTuple):
    """A number at `at` in a file that counts pieces of so many bytes."""

    at: int
    form: str
    piece_bytes: int = 1


class _Part(NamedTuple):
    """Bytes of a file, with the size that they state of themselves, and the sizes of the parts that they are in."""

    start: int
    end: int
    own_size: tuple[_Size, ...] = ()
    outer_sizes: tuple[_Size, ...] = ()


def _parts_of_jpeg(encoded: bytes) -> Iterator[_Part]:
    """Yield the first segment of each kind, and the last scan."""
    at, seen = 2, set()
    while encoded[at + 1] != 0xD9:
        end = at + 2 + struct.unpack_from(">H", encoded, at + 2)[0]
        part = _Part(at, end, (_Size(at + 2, ">H"),))
        yield from [part] * (encoded[at + 1] not in seen)
        seen.add(encoded[at + 1])
        if encoded[at + 1] == 0xDA:
            while encoded[end] != 0xFF or encoded[end + 1] == 0:
                end += 1
            last_scan = _Part(at, end)
        at = end
    yield last_scan


def _parts_of_png(encoded: bytes) -> Iterator[_Part]:
    at = 8
    while at < len(encoded):
        end = at + 12 + struct.unpack_from(">I", encoded, at)[0]
        yield _Part(at, end, (_Size(at, ">I"),))
        at = end


def _parts_of_webp(encoded: bytes) -> Iterator[_Part]:
    at = 12
    while at < len(encoded):
        size = struct.unpack_from("<I", encoded, at + 4)[0]
        yield _Part(at, at + 8 + size, (_Size(at + 4, "<I"),), (_Size(4, "<I"),))
        at += 8 + size + size % 2


def _parts_of_gif(encoded: bytes) -> Iterator[_Part]:
    at = 13 + (3 * 2 ** ((encoded[10] & 7) + 1) if encoded[10] & 0x80 else 0)
    while encoded[at] == 0x21:
        block = end = at + 2
        while encoded[end]:
            end += 1 + encoded[end]
        yield _Part(at, end + 1)
        if end > block:
            yield _Part(block, block + 1 + encoded[block])
        yield _Part(at, at + 2)
        at = end + 1


def _parts_of_isobmff(
    encoded: bytes, at: int = 0, end: int | None = None, outer_sizes: tuple[_Size, ...] = ()
) -> Iterator[_Part]:
    """Yield the first box of each kind in a box."""
    containers = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"iref": 4, b"iinf": 6, b"grpl": 0}
    end, seen = len(encoded) if end is None else end, set()
    while at < end:
        size, kind = struct.unpack_from(">I4s", encoded, at)
        part = _Part(at, at + size, (_Size(at, ">I"),), outer_sizes)
        yield from [part] * (kind not in seen)
        seen.add(kind)
        if kind in containers:
            yield from _parts_of_isobmff(encoded, at + 8 + containers[kind], at + size, part.own_size + outer_sizes)
        at += size


def _parts_of_tiff(encoded: bytes) -> Iterator[_Part]:
    """Yield the first entry of the directory of a BigTIFF."""
    directory = struct.unpack_from("<Q", encoded, 8)[0]
    yield _Part(directory + 8, directory + 28, outer_sizes=(_Size(directory, "<Q", 20),))


def _parts_of_bmp(encoded: bytes) -> Iterator[_Part]:
    yield _Part(14, 14 + encoded[14], (_Size(14, "<I"),))


_PARTS = {
    "JPEG": _parts_of_jpeg,
    "PNG": _parts_of_png,
    "WebP": _parts_of_webp,
    "GIF": _parts_of_gif,
    "BMP": _parts_of_bmp,
    "TIFF": _parts_of_tiff,
    "AVIF": _parts_of_isobmff,
    "HEIC": _parts_of_isobmff,
}


def _with_metadata(name: str) -> bytes:
    """Return a picture with transparency, a profile, Exif data and texts, as far as `name` has them."""
    picture, to = draw("clock").resize((64, 64)), BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    more: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": bytes(200), "xmp": b"<x/>", "comment": b"a" * 300}
    if name == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Raw profile type exif", "\nexif\n      8\n4578696600004d4d\n")
        texts.add_itxt("XML:com.adobe.xmp", "<x/>", zip=True)
        more = {"pnginfo": texts, "icc_profile": bytes(200)}
    if name in {"PNG", "WebP", "AVIF", "HEIC"}:
        picture.putalpha(128)
    if name == "JPEG":
        more["progressive"] = True
    if name == "TIFF":
        more["big_tiff"] = True
    picture.save(to, PILLOW_NAMES[name], **more)
    return to.getvalue()


def _enlarged(encoded: bytes, parts: Iterator[_Part]) -> Iterator[tuple[str, bytes]]:
    """Yield files of which a part is repeated, or has more contents, with what was done to each."""
    for part in parts:
        repeated = encoded[part.start : part.end]
        yield f"{repeated[:12]!r} repeated", _inserted(encoded, part.end, repeated, part.outer_sizes)
        for filling in _FILLINGS:
            sizes = part.own_size + part.outer_sizes
            yield f"{filling!r} at the end of {repeated[:12]!r}", _inserted(encoded, part.end, filling, sizes)


def _inserted(encoded: bytes, at: int, part: bytes, sizes: tuple[_Size, ...]) -> bytes:
    """Return the file with `part` at `at`, as often as there is room in the file and in the numbers that count it."""
    room = _ADDED_BYTES
    for size in sizes:
        room = min(room, 2 ** (8 * struct.calcsize(size.form)) - 1 - struct.unpack_from(size.form, encoded, size.at)[0])
    added = part * (room // len(part))
    changed = bytearray(encoded)
    for size in sizes:
        before = struct.unpack_from(size.form, encoded, size.at)[0]
        struct.pack_into(size.form, changed, size.at, before + len(added) // size.piece_bytes)
    changed[at:at] = added
    return bytes(changed)


class _TooManyLinesError(Exception):
    pass


def _read(encoded: bytes) -> None:
    """Do what a decode thread of the serving process does with a file."""
    try:
        if predict_cost(encoded, _LIMITS, enough=32).ordinary:
            decode_strips(encoded, _LIMITS, enough=32, jpeg_reader="fast").assembled()
    except (ImageError, DamagedJpegError):
        pass


def _count_lines(encoded: bytes) -> None:
    """Raises _TooManyLinesError if more than _MOST_LINES of Python are executed to read a file."""
    lines = 0

    def count(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        if lines > _MOST_LINES:
            raise _TooManyLinesError
        return count

    sys.settrace(count)
    try:
        _read(encoded)
    finally:
        sys.settrace(None)


def _peak_bytes(encoded: bytes) -> int:
    tracemalloc.start()
    try:
        _read(encoded)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_with_many_of_one_part_takes_few_steps_and_bytes(name: str) -> None:
    encoded = _with_metadata(name)
    for what, enlarged in _enlarged(encoded, _PARTS[name](encoded)):
        try:
            _count_lines(enlarged)
        except _TooManyLinesError:
            pytest.fail(f"{what}: more than {_MOST_LINES:,} lines")
        assert _peak_bytes(enlarged) < _MOST_BYTES, what
