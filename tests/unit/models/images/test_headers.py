"""Headers that state much are refused, or cost what they state, before anything is decoded.

Each was a file of up to 20 MB whose prediction took seconds or gigabytes in the serving process.
"""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from models.images.formats import predict_cost
from models.images.heif import _Reader, read_heif
from models.images.png import read_png
from models.interface.errors import TooCostlyError, UndecodableImageError
from models.interface.request import ImageLimits

_LIMITS = ImageLimits()


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _full(kind: bytes, content: bytes) -> bytes:
    return _box(kind, bytes(4) + content)


def _reference(kind: bytes, item: int, others: list[int]) -> bytes:
    return _box(kind, struct.pack(f">HH{len(others)}H", item, len(others), *others))


def _avif(alphas: int, tiles: int, properties: int = 1) -> bytes:
    """An AVIF whose transparency, item 2, is stated `alphas` times and has `tiles` tiles, all of them item 3."""
    sizes = _full(b"ispe", struct.pack(">II", 64, 64))
    alpha = _full(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
    of_items = struct.pack(">IHBBHBBB", 3, 1, 1, 1, 2, 2, 1, 2)
    of_items += struct.pack(">HB", 3, properties) + bytes([1]) * properties
    references = _reference(b"auxl", 2, [1]) * alphas + _reference(b"dimg", 2, [3] * tiles)
    inside = _full(b"pitm", struct.pack(">H", 1))
    inside += _box(b"iprp", _box(b"ipco", sizes + alpha) + _full(b"ipma", of_items)) + _full(b"iref", references)
    return _box(b"ftyp", b"avif" + bytes(4) + b"avif") + _full(b"meta", inside)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + zlib.crc32(kind + body).to_bytes(4)


def _png(*chunks: bytes, pixels: bytes | None = None) -> bytes:
    """A PNG of 256 x 256 grey pixels."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 256, 256, 8, 0, 0, 0, 0))
    packed = zlib.compress(bytes(257 * 256)) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_references_of_an_avif_are_not_multiplied_with_its_tiles() -> None:
    many = _avif(2000, 1000)

    assert _peak_bytes(lambda: predict_cost(many, _LIMITS, enough=None)) < 10 * 2**20
    assert read_heif(many, "AVIF") == read_heif(_avif(1, 1000), "AVIF")
    # Tiles count each time.
    assert read_heif(many, "AVIF").coded_pixels == 64 * 64 * 1001


def test_properties_of_an_item_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    colours_of = _Reader.colours_of

    def counted(reader: _Reader, properties: object) -> object:
        nonlocal read
        read += 1
        return colours_of(reader, properties)  # type: ignore[arg-type]

    monkeypatch.setattr(_Reader, "colours_of", counted)
    assert read_heif(_avif(100, 4000, properties=200), "AVIF").alpha
    assert read <= 4


def test_a_text_of_a_png_that_is_longer_than_exif_data_is_not_read() -> None:
    exif = b"Raw profile type exif\0\nexif\n      8\n" + b"4578696600004d4d" + b"\n"
    assert read_png(_png(_chunk(b"tEXt", exif))).exif_as_text == bytes.fromhex("4578696600004d4d")

    assert read_png(_png(_chunk(b"tEXt", b"Raw profile type exif\0no lines"))).exif_as_text == b""

    xmp = _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 1000) + bytes(2**20))
    assert read_png(_png(xmp)).xmp == b""

    longest = read_png(_png(_chunk(b"tEXt", b"Raw profile type exif\0" + b"\n" * (2**20 - 22))))
    assert _peak_bytes(lambda: longest.exif_as_text) < 5 * 2**20
    longer = read_png(_png(*(_chunk(kind, bytes(2**20 + 1)) for kind in (b"iCCP", b"eXIf", b"tRNS"))))
    assert (longer.packed_profile, len(longer.exif), longer.transparency) == (b"", 2**20 + 1, b"")


def test_an_extension_of_a_gif_without_blocks_counts() -> None:
    with pytest.raises(UndecodableImageError, match="too many pieces"):
        predict_cost(b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"\x21\xfe\x00" * 60_000, _LIMITS, enough=None)


def test_pixels_of_a_png_that_are_packed_larger_than_they_are_cost_what_their_bytes_may() -> None:
    """Blocks of a deflate stream may be without contents, and take longer than any others."""
    as_usual = predict_cost(_png(), _LIMITS, enough=None)
    stored = predict_cost(_png(pixels=zlib.compress(bytes(257 * 256), 0)), _LIMITS, enough=None)
    assert stored.seconds == pytest.approx(as_usual.seconds)
    # A stored block of no bytes.
    empty = b"\x78\x01" + b"\x00\x00\x00\xff\xff" * 400_000
    assert predict_cost(_png(pixels=empty), _LIMITS, enough=None).seconds > 0.15
    with pytest.raises(TooCostlyError):
        predict_cost(_png(pixels=empty * 10), _LIMITS, enough=None)
