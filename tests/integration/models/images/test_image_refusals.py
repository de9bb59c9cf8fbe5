"""What cannot be decoded, or must not be, is refused as the right ImageError."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from models.images.decode import read_header
from models.images.formats import FORMATS, PILLOW_NAMES
from models.images.preprocessing import decode_image
from models.interface.errors import (
    ImageError,
    TooElongatedError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedFormatError,
)
from models.interface.request import ImageLimits

LIMITS = ImageLimits()

ImageFile = Callable[..., bytes]


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises pixels and ends where they should begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT"


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF of one frame whose size its screen need not share."""
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", *screen, 0x80, 0, 0)
        + b"\0\0\0\xff\xff\xff,"
        + struct.pack("<HHHHB", 0, 0, *frame, 0)
        + b"\x02\x02\x4c\x01\x00;"
    )


@pytest.mark.parametrize(
    "encoded",
    [b"\0", b"just some text", b"<!doctype html><html></html>", b"%PDF-1.7\n", b"\0" * 4096, b"\xff" * 4096],
)
def test_other_data_is_an_unsupported_format(encoded: bytes) -> None:
    with pytest.raises(UnsupportedFormatError) as refused:
        decode_image(encoded, LIMITS)
    assert refused.value.formats == FORMATS


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_metadata_of_a_png_that_would_unpack_to_megabytes_take_no_memory() -> None:
    header = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0))
    bomb = zlib.compress(b"x" * 100_000_000)
    bombs = (
        _png_chunk(b"zTXt", b"comment\0\0" + bomb)
        + _png_chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb)
        + _png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)
        + _png_chunk(b"iCCP", b"profile\0\0" + bomb)
    )
    pixels = _png_chunk(b"IDAT", zlib.compress(bytes(310)))
    encoded = b"\x89PNG\r\n\x1a\n" + header + bombs + pixels + _png_chunk(b"IEND", b"")
    tracemalloc.start()
    try:
        assert decode_image(encoded, LIMITS).shape == (3, 10, 10)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * 2**20


@pytest.mark.parametrize("image_format", ["ICO", "PPM", "TGA", "EPS", "JPEG2000"])
def test_an_image_of_another_format_is_not_read(image_file: ImageFile, image_format: str) -> None:
    with pytest.raises(UnsupportedFormatError):
        decode_image(image_file(None, image_format), LIMITS)


@pytest.mark.parametrize("image_format", PILLOW_NAMES.values())
def test_half_a_file_is_an_image_error(image_file: ImageFile, image_format: str) -> None:
    picture = Image.effect_noise((80, 60), 90).convert("RGB")
    encoded = image_file(picture, image_format)
    with pytest.raises(ImageError):
        decode_image(encoded[: len(encoded) // 2], LIMITS)


def test_a_jpeg_without_its_pixels_names_its_format_and_the_reason(image_file: ImageFile) -> None:
    encoded = image_file(Image.effect_noise((80, 60), 90).convert("RGB"), "JPEG")
    with pytest.raises(UndecodableImageError, match=r"The JPEG image cannot be decoded: .+\.") as refused:
        decode_image(encoded[:700], LIMITS)
    assert refused.value.image_format == "JPEG"


def test_a_png_with_scrambled_pixels_is_undecodable(image_file: ImageFile) -> None:
    encoded = bytearray(image_file(Image.effect_noise((80, 60), 90).convert("RGB"), "PNG"))
    encoded[200:400] = b"\xa5" * 200
    with pytest.raises(UndecodableImageError):
        decode_image(bytes(encoded), LIMITS)


def test_a_png_whose_palette_is_missing_is_undecodable(image_file: ImageFile) -> None:
    encoded = image_file(Image.new("P", (8, 8)), "PNG")
    start = encoded.index(b"PLTE") - 4
    end = encoded.index(b"IDAT") - 4
    with pytest.raises(UndecodableImageError):
        decode_image(encoded[:start] + encoded[end:], LIMITS)


def test_the_bytes_decide_the_format_of_a_file(image_file: ImageFile) -> None:
    """A PNG's signature before a JPEG is neither format; a whole JPEG is a JPEG under any name."""
    with pytest.raises(ImageError):
        decode_image(b"\x89PNG\r\n\x1a\n" + image_file(None, "JPEG"), LIMITS)


def test_a_jpeg_followed_by_garbage_is_decoded(image_file: ImageFile) -> None:
    whole = image_file(None, "JPEG")
    assert decode_image(whole + b"rubbish" * 100, LIMITS).equal(decode_image(whole, LIMITS))


def test_too_many_declared_pixels_are_refused_before_they_cost_memory() -> None:
    encoded = png_header(50_000, 50_000)
    tracemalloc.start()
    try:
        with pytest.raises(TooManyPixelsError, match="50000 x 50000"):
            decode_image(encoded, LIMITS)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize(("screen", "frame"), [((65535, 65535), (1, 1)), ((1, 1), (65535, 65535))])
def test_a_gif_cannot_hide_its_pixels_in_screen_or_frame(screen: tuple[int, int], frame: tuple[int, int]) -> None:
    with pytest.raises(TooManyPixelsError):
        decode_image(gif(screen, frame), LIMITS)


def webp(width: int, height: int) -> bytes:
    """A WebP in the extended format that ends after its canvas size."""
    body = b"VP8X" + struct.pack("<II", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


@pytest.mark.parametrize(
    "encoded",
    [gif((1, 1), (65535, 65535)), webp(16384, 16384)],
    ids=["gif frame", "webp canvas"],
)
def test_an_image_over_pillows_own_limit_is_an_image_error(encoded: bytes) -> None:
    with pytest.raises(ImageError):
        read_header(encoded)


@pytest.mark.parametrize("image_format", PILLOW_NAMES.values())
def test_the_pixel_limit_is_met_exactly(image_file: ImageFile, image_format: str) -> None:
    encoded = image_file(None, image_format)
    assert decode_image(encoded, ImageLimits(max_pixels=1200)).shape == (3, 30, 40)
    with pytest.raises(TooManyPixelsError) as refused:
        decode_image(encoded, ImageLimits(max_pixels=1199))
    assert (refused.value.width, refused.value.height, refused.value.limit) == (40, 30, 1199)


@pytest.mark.parametrize("size", [(101, 2), (2, 101), (51, 1)])
def test_a_picture_too_long_for_its_width_is_refused(image_file: ImageFile, size: tuple[int, int]) -> None:
    with pytest.raises(TooElongatedError):
        decode_image(image_file(Image.new("RGB", size)), LIMITS)


@pytest.mark.parametrize("size", [(100, 2), (2, 100), (50, 1)])
def test_a_picture_as_long_as_allowed_is_read(image_file: ImageFile, size: tuple[int, int]) -> None:
    assert decode_image(image_file(Image.new("RGB", size)), LIMITS).shape == (3, size[1], size[0])
