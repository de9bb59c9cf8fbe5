"""What a decode will cost is known from header and markers, and refused above the limits."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image

import models.images.pillow_reading  # noqa: F401 - registers the writer of HEIC
from models.images.formats import predict_cost
from models.interface.errors import EmptyImageError, TooCostlyError, TooManyPixelsError, UndecodableImageError
from models.interface.errors import UnsupportedFormatError as Unsupported
from models.interface.request import ImageLimits

_LIMITS = ImageLimits()
_NO_LIMITS = ImageLimits(max_decode_seconds=1e9, max_decode_bytes=2**60)


def _file(size: tuple[int, int], image_format: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert(mode).resize(size).save(file, image_format, **options)
    return file.getvalue()


def _png(width: int, height: int, depth: int, colours: int) -> bytes:
    """The header of a PNG alone: a prediction needs no more."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _unpacked_text(letter: str) -> bytes:
    return _chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(letter.encode() + b"a" * (2**20 - 8)))


def _webp(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    return b"RIFF" + struct.pack("<I", 21) + b"WEBPVP8L" + struct.pack("<IBI", 9, 0x2F, bits)


def _transparent_webp() -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(file, "WEBP")
    return file.getvalue()


def _gif(width: int, height: int) -> bytes:
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + bytes(3) + b"," + bytes(4) + size + bytes(12)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _heif(
    brand: bytes,
    size: tuple[int, int],
    *,
    tiles: Sequence[tuple[int, int]] = (),
    alpha: tuple[int, int] | None = None,
    thumbnail: tuple[int, int] | None = None,
    colours: bytes = b"",
) -> bytes:
    """The header of an AVIF or a HEIC alone. Item 1 is the picture, those from 10 on are its tiles."""
    sizes = {
        1: size,
        **dict(enumerate(tiles, 10)),
        **({2: alpha} if alpha else {}),
        **({3: thumbnail} if thumbnail else {}),
    }
    properties = b"".join(_box(b"ispe", bytes(4) + struct.pack(">II", *each)) for each in sizes.values())
    auxiliary = _box(b"auxC", bytes(4) + b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
    extra = [number for number, content in ((len(sizes) + 1, auxiliary), (len(sizes) + 2, colours)) if content]
    owner = {2: extra[:1], 1: extra[1:]}
    associations = b"".join(
        struct.pack(">HB", item, 1 + len(owner.get(item, ()))) + bytes([number, *owner.get(item, ())])
        for number, item in enumerate(sizes, 1)
    )
    references = (
        _box(b"dimg", struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *range(10, 10 + len(tiles)))) if tiles else b""
    )
    references += _box(b"auxl", struct.pack(">HHH", 2, 1, 1)) if alpha else b""
    references += _box(b"thmb", struct.pack(">HHH", 3, 1, 1)) if thumbnail else b""
    return _box(b"ftyp", brand + bytes(4) + b"mif1" + brand) + _box(
        b"meta",
        bytes(4)
        + _box(b"pitm", bytes(4) + struct.pack(">H", 1))
        + _box(b"iref", bytes(4) + references)
        + _box(
            b"iprp",
            _box(b"ipco", properties + auxiliary + colours)
            + _box(b"ipma", bytes(4) + struct.pack(">I", len(sizes)) + associations),
        ),
    )


def _bmp(width: int, height: int, bits: int, compression: int = 0) -> bytes:
    return b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, width, height, 1, bits, compression) + bytes(20)


def _tiff(width: int, height: int, tile: int, compression: int = 8) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: compression, 277: 1, 322: tile, 323: tile}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def _jpeg_of_kind(start_of_frame: int, encoded: bytes) -> bytes:
    at = encoded.index(b"\xff\xc0")
    return encoded[: at + 1] + bytes([start_of_frame]) + encoded[at + 2 :]


def _scans_again(encoded: bytes, times: int) -> bytes:
    """A progressive JPEG whose first scan comes again and again."""
    start = encoded.index(b"\xff\xda")
    end = encoded.index(b"\xff", start + 14)
    while encoded[end + 1] == 0:
        end = encoded.index(b"\xff", end + 2)
    return encoded[:start] + encoded[start:end] * times + encoded[end:]


COSTLY: dict[str, Callable[[], bytes]] = {
    "an arithmetically coded JPEG": lambda: _jpeg_of_kind(0xC9, _file((4000, 3000), "JPEG", quality=50)),
    "a PNG of 50 megapixels": lambda: _png(7000, 7142, 8, 2),
    "a PNG of 16 bits": lambda: _png(5000, 4000, 16, 6),
    "a WebP of one colour": lambda: _webp(7000, 7142),
    "a GIF of 48 megapixels": lambda: _gif(8000, 6000),
    "a run-length encoded BMP of 5 MB": lambda: _bmp(4000, 3000, 8, 1) + bytes(5_000_000),
    "an AVIF of 24 megapixels": lambda: _heif(b"avif", (6000, 4000)),
    "an AVIF of one pixel in tiles of 24 megapixels": lambda: _heif(b"avif", (1, 1), tiles=[(6000, 4000)]),
    "a HEIC with transparency much larger than itself": lambda: _heif(b"heic", (1, 1), alpha=(6000, 4000)),
    "a TIFF of thousands of large tiles": lambda: _tiff(50_000, 1000, 6928),
}

ORDINARY: dict[str, Callable[[], bytes]] = {
    "a photograph of 12 megapixels": lambda: _file((4000, 3000), "JPEG"),
    "a photograph of 48 megapixels": lambda: _file((8000, 6000), "JPEG"),
    "a progressive photograph of 12 megapixels": lambda: _file((4000, 3000), "JPEG", progressive=True),
    "a small arithmetically coded JPEG": lambda: _jpeg_of_kind(0xC9, _file((640, 480), "JPEG")),
    "a PNG of 24 megapixels": lambda: _png(6000, 4000, 8, 2),
    "a PNG of 6 megapixels with 16 bits": lambda: _png(3000, 2000, 16, 2),
    "a PNG of compressed text": lambda: _png(64, 64, 8, 2) + 60 * _unpacked_text("\N{GRINNING FACE}"),
    "a PNG of Exif data": lambda: _png(64, 64, 8, 2) + _chunk(b"eXIf", bytes(18_000_000)),
    "a PNG with metadata behind its pixels": lambda: (
        _png(64, 64, 8, 2) + _chunk(b"IDAT", b"") + _chunk(b"tEXt", bytes(18_000_000))
    ),
    "a run-length encoded BMP": lambda: _bmp(4000, 3000, 8, 1),
    "an AVIF of 12 megapixels": lambda: _heif(b"avif", (4000, 3000)),
    "a HEIC of 12 megapixels in tiles with a thumbnail": lambda: _heif(
        b"heic", (4032, 3024), tiles=[(512, 512)] * 48, thumbnail=(320, 240)
    ),
    "a PNG with a colour profile and a description": lambda: (
        _png(64, 64, 8, 6) + _chunk(b"iCCP", bytes(3000)) + _chunk(b"tEXt", bytes(200_000))
    ),
    "a WebP of 8 megapixels": lambda: _webp(3264, 2448),
    "a GIF of 2 megapixels": lambda: _gif(1920, 1080),
    "a BMP of 12 megapixels": lambda: _bmp(4000, 3000, 24),
    "a TIFF of 12 megapixels": lambda: _tiff(4000, 3000, 256),
}


@pytest.mark.parametrize("name", COSTLY)
def test_an_image_that_is_too_expensive_to_decode_is_refused(name: str) -> None:
    with pytest.raises(TooCostlyError, match=r"too expensive to decode: it may take .* are allowed"):
        predict_cost(COSTLY[name](), _LIMITS, enough=512)


@pytest.mark.parametrize("name", ORDINARY)
def test_an_image_as_cameras_and_programs_write_it_is_within_the_default_limits(name: str) -> None:
    predicted = predict_cost(ORDINARY[name](), _LIMITS, enough=512)
    assert 0 < predicted.seconds <= _LIMITS.max_decode_seconds
    assert 0 < predicted.memory_bytes <= _LIMITS.max_decode_bytes


def test_images_above_the_limits_are_refused() -> None:
    encoded = _png(2000, 2000, 8, 2)
    predicted = predict_cost(encoded, _LIMITS)
    assert predict_cost(encoded, replace(_LIMITS, max_decode_seconds=predicted.seconds)) == predicted
    for limits in (
        replace(_LIMITS, max_decode_seconds=predicted.seconds * 0.99),
        replace(_LIMITS, max_decode_bytes=predicted.memory_bytes - 1),
    ):
        with pytest.raises(TooCostlyError):
            predict_cost(encoded, limits)


def test_more_scans_passes_tiles_and_bytes_of_a_pixel_cost_more() -> None:
    progressive = _file((2000, 1500), "JPEG", progressive=True)
    for cheaper, dearer in pairwise([_scans_again(progressive, times) for times in (1, 2, 63, 64, 65, 300)]):
        assert predict_cost(cheaper, _NO_LIMITS).seconds < predict_cost(dearer, _NO_LIMITS).seconds
    for cheaper, dearer in (
        (_png(900, 900, 8, 0), _png(900, 900, 8, 2)),
        (_png(900, 900, 8, 2), _png(900, 900, 16, 6)),
        (_tiff(900, 900, 256), _tiff(9000, 900, 900)),
        (_tiff(900, 900, 900, compression=1), _tiff(900, 900, 900, compression=4)),
        (_bmp(900, 900, 8), _bmp(900, 900, 8, 1)),
    ):
        assert predict_cost(cheaper, _NO_LIMITS).seconds < predict_cost(dearer, _NO_LIMITS).seconds


def test_scans_that_are_hidden_behind_other_markers_are_counted() -> None:
    whole = _scans_again(_file((256, 256), "JPEG", progressive=True), 100)
    hidden = whole.replace(b"\xff\xda", b"\xff\xfe\0\6\xff\xd9\0\0\xff\xff\xff\xda")
    assert predict_cost(hidden, _NO_LIMITS).seconds >= predict_cost(whole, _NO_LIMITS).seconds


def test_pictures_in_comments_and_data_behind_an_image_cost_nothing() -> None:
    whole = _file((256, 256), "JPEG", progressive=True)
    scan = whole[whole.index(b"\xff\xda") :][:14]
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 100 * len(scan)) + scan * 100
    film = whole + scan * 5000
    within = whole.replace(b"\xff\xc4", comment + b"\xff\xc4")
    for encoded in (film, within):
        assert predict_cost(encoded, _NO_LIMITS).seconds < 5 * predict_cost(whole, _NO_LIMITS).seconds


def test_a_reduced_decode_costs_less_than_a_full_one() -> None:
    encoded = _file((4000, 3000), "JPEG")
    reduced, full = predict_cost(encoded, _LIMITS, enough=512), predict_cost(encoded, _LIMITS)
    assert reduced.seconds < full.seconds
    assert reduced.memory_bytes < full.memory_bytes / 2


@pytest.mark.parametrize(
    ("encoded", "ordinary"),
    [
        (_file((64, 64), "JPEG"), True),
        (_file((64, 64), "JPEG", progressive=True), True),
        (_file((64, 64), "JPEG", "L"), True),
        (_file((64, 64), "JPEG", "CMYK"), False),
        (_jpeg_of_kind(0xC3, _file((64, 64), "JPEG")), False),
        (_jpeg_of_kind(0xC9, _file((64, 64), "JPEG")), False),
        (_png(64, 64, 8, 6), True),
        (_png(64, 64, 16, 0), False),
        (_png(64, 64, 8, 6) + _chunk(b"IDAT", b"") * 2_000, True),
        (_png(64, 64, 8, 6) + _chunk(b"IDAT", b"") * 5_000, False),
        (_file((64, 64), "WEBP"), True),
        (_file((64, 64), "WEBP", lossless=True), False),
        (_transparent_webp(), False),
        (_gif(64, 64), False),
        (_bmp(64, 64, 24), False),
        (_tiff(64, 64, 64), False),
        (_heif(b"avif", (64, 64)), False),
        (_heif(b"heic", (64, 64)), False),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else str(value),
)
def test_only_everyday_kinds_of_images_are_ordinary(encoded: bytes, ordinary: bool) -> None:  # noqa: FBT001
    assert predict_cost(encoded, _LIMITS).ordinary is ordinary


def test_other_data_and_too_large_images_are_refused_with_their_errors() -> None:
    with pytest.raises(EmptyImageError):
        predict_cost(b"", _LIMITS)
    with pytest.raises(Unsupported):
        predict_cost(b"text", _LIMITS)
    with pytest.raises(TooManyPixelsError):
        predict_cost(_png(10_000, 10_000, 8, 2), _LIMITS)
    for damaged in (_png(64, 64, 8, 2)[:20], _webp(64, 64)[:22], _gif(64, 64)[:9], _bmp(64, 64, 8)[:20], b"II*\0\xff"):
        with pytest.raises(UndecodableImageError, match="header is damaged"):
            predict_cost(damaged, _LIMITS)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        (_png(64, 64, 8, 2)[8:] + _png(7000, 7000, 8, 6)[8:], "it has two headers"),
        (_chunk(b"tEXt", _png(64, 64, 8, 2)[16:29]) + _png(7000, 7000, 8, 6)[8:], "it does not begin with its header"),
    ],
)
def test_a_png_whose_reader_would_find_another_size_is_refused(chunks: bytes, reason: str) -> None:
    with pytest.raises(UndecodableImageError, match=reason):
        predict_cost(b"\x89PNG\r\n\x1a\n" + chunks, _LIMITS)


def _colours(primaries: int, transfer: int) -> bytes:
    return _box(b"colr", b"nclx" + struct.pack(">HHHB", primaries, transfer, 6, 0x80))


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize("brand", [b"avif", b"heic"])
def test_a_picture_of_high_dynamic_range_is_refused_by_its_header(brand: bytes, transfer: int) -> None:
    with pytest.raises(UndecodableImageError, match="high dynamic range"):
        predict_cost(_heif(brand, (64, 64), colours=_colours(9, transfer)), _LIMITS)
    assert predict_cost(_heif(brand, (64, 64), colours=_colours(9, 13)), _LIMITS).seconds > 0


def test_boxes_within_boxes_and_endless_lists_are_refused() -> None:
    nested = b""
    for _ in range(5_000):
        nested = _box(b"meta", bytes(4) + nested)
    boxes = _box(b"free", b"") * 30_000
    for header in (
        nested,
        _box(b"meta", bytes(4) + boxes),
        boxes,
        _box(b"meta", bytes(4) + _box(b"ipma", bytes(4) + b"\xff" * 4)),
    ):
        with pytest.raises(UndecodableImageError):
            predict_cost(_box(b"ftyp", b"avif" + bytes(4) + b"avif") + header, _LIMITS)


def test_colours_that_may_have_to_be_converted_cost_more() -> None:
    plain, wide = (_heif(b"avif", (900, 900), colours=_colours(each, 13)) for each in (1, 12))
    assert predict_cost(plain, _LIMITS).seconds < predict_cost(wide, _LIMITS, enough=100).seconds
    assert predict_cost(wide, _LIMITS, enough=100).seconds < predict_cost(wide, _LIMITS).seconds


def test_of_jpeg_components_with_one_number_the_most_expensive_is_expected() -> None:
    encoded = bytearray(_file((640, 480), "JPEG", progressive=True, subsampling="4:2:0"))
    usual = predict_cost(bytes(encoded), _NO_LIMITS)
    frame = encoded.index(b"\xff\xc2") + 10
    encoded[frame : frame + 9 : 3] = b"\1\1\1"
    at = 0
    while (at := encoded.find(b"\xff\xda", at)) >= 0:
        for selector in range(at + 5, at + 5 + 2 * encoded[at + 4], 2):
            encoded[selector] = 1
        at += 2
    assert predict_cost(bytes(encoded), _NO_LIMITS).seconds > usual.seconds
