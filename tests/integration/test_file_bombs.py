"""Files that cost far more than their width and height tell are refused for what they are."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import ImageError, TooManyPixelsError, UndecodableImageError
from models.images import decode_image
from models.limits import ImageLimits

LIMITS = ImageLimits()

ImageFile = Callable[..., bytes]

# An alternating run of two pixels at the beginning of a line, whose rest stays black.
RUN_LENGTH_LINE = b"\2\1\0\0"


def segment(marker: int, content: bytes = b"") -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def after_its_first_marker(jpeg: bytes, inserted: bytes) -> bytes:
    return jpeg[:2] + inserted + jpeg[2:]


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def run_length_bmp(width: int, height: int) -> bytes:
    pixels, palette = RUN_LENGTH_LINE * height, bytes(4 * 256)
    begins_at = 14 + 40 + len(palette)
    return (
        b"BM"
        + struct.pack("<IHHI", begins_at + len(pixels), 0, 0, begins_at)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
        + palette
        + pixels
    )


def tiff(width: int, length: int, bits: int, strip: bytes, *extra: tuple[int, int]) -> bytes:
    """A grey TIFF of one strip, zero black where no tag says otherwise. `extra` are tags with their numbers."""
    tags = {256: width, 257: length, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: length, 279: len(strip)}
    tags |= dict(extra)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.fixture
def jpeg(image_file: ImageFile) -> bytes:
    return image_file(None, "JPEG")


@pytest.fixture
def png(image_file: ImageFile) -> bytes:
    return image_file(None, "PNG")


def refusal_of(encoded: bytes) -> ImageError:
    with pytest.raises(ImageError) as refused:
        decode_image(encoded, LIMITS)
    return refused.value


@pytest.mark.parametrize(
    ("inserted", "said"),
    [
        (segment(0xE1, b"Exif\0\0") * 10_000, "more than 64 Exif segments"),
        (segment(0xFE) * 100_000, "more than 50000 pieces"),
        (b"\xff" * 200_000, "more than 50000 pieces"),
    ],
    ids=["Exif", "comments", "padding"],
)
def test_a_jpeg_of_very_many_segments_is_refused(jpeg: bytes, inserted: bytes, said: str) -> None:
    assert said in str(refusal_of(after_its_first_marker(jpeg, inserted)))


def test_a_jpeg_of_very_many_scans_is_refused(image_file: ImageFile) -> None:
    progressive = image_file(None, "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    scan = progressive[last : progressive.index(b"\xff\xd9", last)]
    assert decode_image(progressive, LIMITS).shape == (3, 30, 40)
    refused = refusal_of(progressive[:last] + 250 * scan + b"\xff\xd9")
    assert "more than 200 scans" in str(refused)


def test_a_sequential_jpeg_of_very_many_scans_is_refused_too(jpeg: bytes) -> None:
    # Its one scan of three components made one of the first alone, and repeated.
    begins = jpeg.rindex(b"\xff\xda")
    scan = segment(0xDA, b"\1\1\0\0\x3f\0") + b"\0" * 8
    assert "more than 200 scans" in str(refusal_of(jpeg[:begins] + 250 * scan + b"\xff\xd9"))


def test_a_png_of_very_many_chunks_is_refused(png: bytes) -> None:
    header = len(b"\x89PNG\r\n\x1a\n") + 12 + 13
    refused = refusal_of(png[:header] + chunk(b"prVt") * 100_000 + png[header:])
    assert "more than 50000 pieces" in str(refused)


def test_a_gif_of_very_many_blocks_is_refused(image_file: ImageFile) -> None:
    gif = image_file(None, "GIF")
    # A comment in pieces of one byte, before the first frame.
    before = gif.index(b",")
    comment = b"!\xfe" + b"\1x" * 200_000 + b"\0"
    assert "more than 50000 pieces" in str(refusal_of(gif[:before] + comment + gif[before:]))


def test_run_lengths_of_very_many_pixels_are_refused_and_those_of_few_read() -> None:
    assert isinstance(refusal_of(run_length_bmp(2000, 2000)), UndecodableImageError)
    assert decode_image(run_length_bmp(20, 10), LIMITS).shape == (3, 10, 20)


def test_tiles_larger_than_any_picture_may_be_are_refused() -> None:
    tile = (322, 16_000), (323, 16_000), (324, 8), (325, 100)
    refused = refusal_of(tiff(64, 64, 8, bytes(100), *tile))
    assert isinstance(refused, TooManyPixelsError)
    assert (refused.width, refused.height) == (16_000, 16_000)


def test_tags_that_lie_are_told_to_nobody(tmp_path: Path) -> None:
    lying = [(tag, 0) for tag in range(40_000, 40_100)]
    encoded = bytearray(tiff(4, 4, 8, bytes(16), *lying))
    for tag, _ in lying:
        # Its values would lie far behind the file's end.
        place = encoded.rindex(struct.pack("<HHII", tag, 4, 1, 0))
        encoded[place : place + 12] = struct.pack("<HHII", tag, 4, 1000, 1 << 30)
    (tmp_path / "lying.tiff").write_bytes(encoded)
    # In a process of its own: pytest has filters for warnings, which come before the module's.
    decoding = """
import sys
from pathlib import Path
from app.logs import configure_logging
from models.images import decode_image
from models.limits import ImageLimits
configure_logging("debug", "json")
decode_image(Path(sys.argv[1]).read_bytes(), ImageLimits())
"""
    command = [sys.executable, "-c", decoding, tmp_path / "lying.tiff"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("bits", "strip", "extra", "expected"),
    [
        (12, b"\xff\xff\xff\x00\x00\x00", (), [255, 255, 0, 0]),
        (16, b"\xff\xff\xff\xff\0\0\0\0", (), [255, 255, 0, 0]),
        (16, b"\xff\xff\xff\xff\0\0\0\0", ((262, 0),), [0, 0, 255, 255]),
        (8, b"\xff\xff\0\0", ((262, 0),), [0, 0, 255, 255]),
    ],
    ids=["12 bits", "16 bits", "16 bits, zero is white", "8 bits, zero is white"],
)
def test_white_is_white_in_a_tiff_of_any_depth(
    bits: int, strip: bytes, extra: tuple[tuple[int, int], ...], expected: list[int]
) -> None:
    pixels = decode_image(tiff(4, 1, bits, strip, *extra), LIMITS)
    np.testing.assert_array_equal(pixels[0, 0], expected)


def test_what_is_transparent_is_white() -> None:
    file = BytesIO()
    Image.new("RGBA", (200, 100), (10, 20, 30, 0)).save(file, "PNG")
    pixels = decode_image(file.getvalue(), LIMITS)
    assert pixels.min() == 255
