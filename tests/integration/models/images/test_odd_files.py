"""Odd files that other programs show are read. What is not read is refused with a plain reason, never as unknown."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from models.images.formats import PILLOW_NAMES
from models.images.preprocessing import decode_image
from models.images.samples import draw
from models.interface.errors import TooCostlyError, TooElongatedError, TooManyPixelsError, UndecodableImageError
from models.interface.request import ImageLimits

# Pillow warns of broken tags in a file that it refuses.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

_LIMITS = ImageLimits()
_SIZE = (48, 40)


def _file(image_format: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    draw("clock").resize(_SIZE).convert(mode).save(file, image_format, **options)
    return file.getvalue()


def _chunk(kind: bytes, body: bytes, *, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)


def _with_chunks(png: bytes, chunks: bytes, before: bytes = b"IDAT") -> bytes:
    at = png.index(before) - 4
    return png[:at] + chunks + png[at:]


def _same(encoded: bytes, plain: bytes) -> bool:
    return decode_image(encoded, _LIMITS).equal(decode_image(plain, _LIMITS))


@pytest.mark.parametrize(
    "kind", [b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"tIME"]
)
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_chunk_that_pixels_do_not_need_is_ignored_where_its_checksum_or_content_is_wrong(
    kind: bytes, before: bytes
) -> None:
    png = _file("PNG")
    for chunk in (_chunk(kind, b"\0" * 9, wrong=1), _chunk(kind, b""), _chunk(kind, b"\xff" * 5)):
        assert _same(_with_chunks(png, chunk, before), png)


def test_a_png_with_a_wrong_checksum_of_its_header_or_palette_is_refused_for_that() -> None:
    png = bytearray(_file("PNG", "P"))
    png[29] ^= 1
    with pytest.raises(UndecodableImageError, match="the checksum of its header is wrong"):
        decode_image(bytes(png), _LIMITS)
    png[29] ^= 1
    png[png.index(b"PLTE") + 5] ^= 1
    with pytest.raises(UndecodableImageError, match="the checksum of its palette is wrong"):
        decode_image(bytes(png), _LIMITS)


def test_a_png_with_a_profile_of_a_megabyte_and_more_is_read() -> None:
    profile = b"large\0\0" + zlib.compress(bytes(1_200_000))
    assert _same(_with_chunks(_file("PNG"), _chunk(b"iCCP", profile)), _file("PNG"))


def test_the_first_picture_of_an_animated_png_is_the_whole_one() -> None:
    file = io.BytesIO()
    first, second = draw("clock").resize(_SIZE), Image.new("RGB", (10, 8), "red")
    first.save(file, "PNG", save_all=True, append_images=[second.resize(_SIZE)])
    assert _same(file.getvalue(), _file("PNG"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}], ids=str)
def test_a_jpeg_without_its_last_marker_is_read_and_one_without_its_last_pixels_is_not(
    mode: str, options: dict[str, int]
) -> None:
    whole = _file("JPEG", mode, **options)
    assert whole.endswith(b"\xff\xd9")
    assert _same(whole[:-2], whole)
    assert _same(whole[:-1], whole)
    for missing in (5, len(whole) // 3):
        with pytest.raises(UndecodableImageError):
            decode_image(whole[:-missing], _LIMITS)


def test_the_part_of_a_gif_that_its_first_picture_leaves_out_is_white() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 30, 60)).save(file, "GIF")
    gif = bytearray(file.getvalue())
    gif[6:10] = struct.pack("<HH", 20, 16)
    at = gif.index(b",", 13)
    gif[at + 1 : at + 5] = struct.pack("<HH", 5, 4)
    found = decode_image(bytes(gif), _LIMITS).permute(1, 2, 0).numpy()
    expected = np.full((16, 20, 3), 255)
    expected[4:10, 5:13] = (200, 30, 60)
    assert (found == expected).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bmp_whose_palette_is_black_and_white_has_as_many_bits_as_its_header_says(bits: int) -> None:
    indices = np.random.default_rng(5).integers(0, 2, (6, 8))
    rows = b"".join(
        bytes(row) if bits == 8 else bytes(row[::2] << 4 | row[1::2]) for row in indices[::-1].astype(np.uint8)
    )
    start = 14 + 40 + 8
    info = struct.pack("<IiiHHIIiiII", 40, 8, 6, 1, bits, 0, len(rows), 0, 0, 2, 0)
    bmp = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + b"\0\0\0\0\xff\xff\xff\0" + rows
    assert (decode_image(bmp, _LIMITS)[0].numpy() == indices * 255).all()


def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque() -> None:
    pixels = np.random.default_rng(6).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    info = struct.pack("<IiiHHIIiiII4I", 56, 8, 6, 1, 32, 3, 192, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    bmp = b"BM" + struct.pack("<IHHI", 70 + 192, 0, 0, 70) + info + pixels[::-1].tobytes()
    assert (decode_image(bmp, _LIMITS).permute(1, 2, 0).numpy() == pixels[..., 2::-1]).all()


def test_a_palette_of_a_tiff_with_levels_of_eight_bits_is_read_as_such() -> None:
    colours = np.array([[10, 20, 30], [200, 30, 60]] + [[0, 0, 0]] * 254)
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette(colours.astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "TIFF")
    large = struct.pack("<256H", *(colours[:, 0] * 256)), struct.pack("<256H", *colours[:, 0])
    tiff = file.getvalue()
    for channel in range(3):
        large, small = (struct.pack("<256H", *(colours[:, channel] * factor)) for factor in (256, 1))
        assert large in tiff
        tiff = tiff.replace(large, small)
    assert decode_image(tiff, _LIMITS)[:, 0, 0].tolist() == [200, 30, 60]


def _tags(**changed: tuple[int, int, int]) -> bytes:
    """A little-endian TIFF of 4 x 4 without its pixels; `changed` has type, count and value by the number of a tag."""
    tags = {
        256: (3, 1, 4),
        257: (3, 1, 4),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
    }
    tags |= {279: (4, 1, 16), **{int(name.removeprefix("tag")): entry for name, entry in changed.items()}}
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + bytes(64)


def _jpeg_with(old: bytes, new: bytes) -> bytes:
    jpeg = _file("JPEG")
    at = jpeg.index(old)
    return jpeg[:at] + new + jpeg[at + len(new) :]


REASONS: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG of 12 bits": (lambda: _jpeg_with(b"\xff\xc0\0\x11", b"\xff\xc1\0\x11\x0c"), "its samples have 12 bits"),
    "JPEG with its height behind it": (
        lambda: _jpeg_with(b"\xff\xc0\0\x11", b"\xff\xc0\0\x11\x08\0\0"),
        r"no height.*DNL",
    ),
    "hierarchical JPEG": (lambda: _jpeg_with(b"\xff\xc0", b"\xff\xc5"), "it is hierarchical"),
    "JPEG of two components": (
        lambda: _jpeg_with(b"\xff\xc0", b"\xff\xc0\0\x11\x08\0\x28\0\x30\x02"),
        "it has 2 components",
    ),
    "JPEG-LS": (lambda: b"\xff\xd8\xff\xf7" + _file("JPEG")[2:].replace(b"\xff\xc0", b"\xff\xf7"), "no frame header"),
    "PNG with converted line endings": (lambda: _file("PNG").replace(b"\r\n", b"\n", 1), "its signature is damaged"),
    "PNG of an unknown colour type": (
        lambda: _file("PNG")[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 3, 0, 0, 0)),
        "unknown colour type",
    ),
    "PNG without pixels": (
        lambda: _file("PNG")[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 8, 8, 2, 0, 0, 0)),
        "it has no pixels",
    ),
    "GIF of an unknown version": (lambda: b"GIF88a" + _file("GIF")[6:], "its version is unknown"),
    "GIF without a picture": (lambda: _file("GIF")[:13] + bytes(768) + b";", "it has no picture"),
    "BMP with a header of another size": (lambda: _file("BMP")[:14] + b"\x29" + _file("BMP")[15:], "header type"),
    "big-endian BigTIFF": (lambda: b"MM\0+\0\x08\0\0" + bytes(64), "big-endian BigTIFF"),
    "CMYK TIFF with alpha": (
        lambda: _tags(tag262=(3, 1, 5), tag277=(3, 1, 5), tag338=(3, 1, 2)),
        "5 samples of 8 bits, photometric interpretation 5",
    ),
    "TIFF of 32 bits": (lambda: _tags(tag258=(3, 1, 32)), "its pixels have 32 bits"),
    "TIFF of floating-point numbers": (lambda: _tags(tag339=(3, 1, 3)), "floating-point numbers of unknown range"),
    "TIFF of signed numbers": (lambda: _tags(tag339=(3, 1, 2)), "signed numbers of unknown range"),
    "TIFF of planes of grey and alpha": (
        lambda: _tags(tag277=(3, 1, 2), tag284=(3, 1, 2), tag338=(3, 1, 2)),
        "its 2 planes .* not of RGB or CMYK",
    ),
    "TIFF of five planes": (
        lambda: _tags(tag262=(3, 1, 2), tag277=(3, 1, 5), tag284=(3, 1, 2), tag338=(3, 1, 2)),
        "its 5 planes",
    ),
    "TIFF of JPEG 2000": (lambda: _tags(tag259=(3, 1, 34712)), "its compression is not one that is read: 34712"),
    "TIFF of WebP": (lambda: _tags(tag259=(3, 1, 50001)), "its compression is not one that is read: 50001"),
    "TIFF of differences that are not packed": (lambda: _tags(tag317=(3, 1, 2)), "its pixels are differences"),
    "WebP of an unknown kind": (lambda: _file("WEBP")[:12] + b"VP9 " + _file("WEBP")[16:], "its header is damaged"),
    "AVIF without boxes": (lambda: _file("AVIF")[:40], "no primary picture"),
    "HEIC whose boxes are cut off": (lambda: _file("HEIF")[:150], "no primary picture|header is damaged"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_known_format_that_is_not_read_is_refused_with_its_reason(name: str) -> None:
    make, reason = REASONS[name]
    with pytest.raises(UndecodableImageError, match=reason):
        decode_image(make(), _LIMITS)


@pytest.mark.parametrize("image_format", PILLOW_NAMES.values())
@pytest.mark.parametrize(
    "rest", [bytes(200), b"\xff" * 200, b"\x7f" * 200, bytes(range(200))], ids=["0", "255", "127", "0 to 199"]
)
def test_the_first_bytes_of_a_format_with_nonsense_behind_them_are_undecodable(image_format: str, rest: bytes) -> None:
    with pytest.raises((UndecodableImageError, TooManyPixelsError, TooElongatedError, TooCostlyError)):
        decode_image(_file(image_format)[:12] + rest, _LIMITS)


@pytest.mark.parametrize("image_format", PILLOW_NAMES.values())
def test_a_file_that_ends_anywhere_in_its_header_is_undecodable_and_not_unknown(image_format: str) -> None:
    encoded = _file(image_format)
    for size in (16, 20, 24, 28, 32, 40, 60, 100):
        with pytest.raises(UndecodableImageError):
            decode_image(encoded[:size], _LIMITS)
