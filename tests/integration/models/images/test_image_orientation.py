"""A photograph comes out upright, whichever way the camera was held and whichever format carries the note of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.Image import Transpose

from models.images.decode import read_header
from models.images.preprocessing import decode_image
from models.interface.request import ImageLimits

ORIENTATION = 0x0112

# What a camera held so stores of an upright scene: the inverse of what undoes it (Exif 2.32, 4.6.4 A).
STORED: dict[int, Transpose | None] = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def upright() -> Image.Image:
    """Without any symmetry: no two orientations of it look alike."""
    picture = Image.new("RGB", (64, 40), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, 23, 11), fill="red")
    pen.rectangle((40, 0, 63, 7), fill="blue")
    pen.rectangle((0, 28, 7, 39), fill="black")
    return picture


def stored(orientation: int) -> Image.Image:
    how = STORED[orientation]
    return upright() if how is None else upright().transpose(how)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_comes_out_upright_and_the_header_gives_the_size_after_it(
    image_file: Callable[..., bytes], image_format: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    encoded = image_file(stored(orientation), image_format, exif=exif)
    found = decode_image(encoded, ImageLimits()).permute(1, 2, 0).numpy().astype(float)
    expected = np.asarray(upright(), dtype=float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 8
    assert read_header(encoded)[1:] == (64, 40)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_jpeg_decoded_by_pillow_is_rotated_too(image_file: Callable[..., bytes], orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    encoded = image_file(stored(orientation).convert("CMYK"), "JPEG", exif=exif)
    found = decode_image(encoded, ImageLimits()).permute(1, 2, 0).numpy().astype(float)
    assert np.abs(found - np.asarray(upright(), dtype=float)).mean() < 8


@pytest.mark.parametrize("value", [0, 9, 4711])
def test_an_invalid_orientation_leaves_the_picture_unchanged(image_file: Callable[..., bytes], value: object) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    found = decode_image(image_file(upright(), "PNG", exif=exif), ImageLimits())
    assert (found.permute(1, 2, 0).numpy() == np.asarray(upright())).all()


# Pillow warns of broken metadata, which this test needs.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0II*\0\x08\0\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1",
        b"Exif\0\0nonsense in here",
        b"Exif\0\0MM\0+\0\x08\0\0\xff\xff\xff\xff\xff\xff\xff\xff\0\1",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0",
    ],
    ids=["cut short", "offset beyond the end", "no TIFF header", "BigTIFF offset over 63 bits", "count beyond the end"],
)
def test_broken_exif_does_not_lose_a_photograph(
    image_file: Callable[..., bytes], image_format: str, exif: bytes
) -> None:
    encoded = image_file(upright(), image_format, exif=exif)
    found = decode_image(encoded, ImageLimits()).permute(1, 2, 0).numpy().astype(float)
    assert np.abs(found - np.asarray(upright(), dtype=float)).mean() < 8


_XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'


def _blank(image_format: str, exif: Image.Exif) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, image_format, exif=exif)
    return file.getvalue()


def test_xmp_gives_the_orientation_if_exif_has_none() -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    jpeg = _blank("JPEG", exif)
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(_XMP)) + _XMP
    assert decode_image(jpeg[:2] + segment + jpeg[2:], ImageLimits()).shape == (3, 40, 30)


def test_exif_data_with_their_prefix_in_a_png_are_read() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    body = b"eXIfExif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    png = _blank("PNG", Image.Exif())
    at = png.index(b"IDAT") - 4
    assert decode_image(png[:at] + chunk + png[at:], ImageLimits()).shape == (3, 40, 30)
