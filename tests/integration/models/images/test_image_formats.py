"""decode_image gives the displayed RGB for every supported format and mode."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.images.formats import PILLOW_NAMES
from models.images.preprocessing import decode_image
from models.interface.request import ImageLimits

LIMITS = ImageLimits()
LOSSLESS = ("PNG", "GIF", "BMP", "TIFF")

# Of the mean difference per channel, out of 255: what JPEG and WebP lose on hard edges.
LOSSY_TOLERANCE = 8.0

ImageFile = Callable[..., bytes]


def drawing() -> Image.Image:
    """64 x 48, different in each corner, flat colours that a palette holds exactly."""
    picture = Image.new("RGB", (64, 48), (240, 240, 240))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, 31, 15), fill=(200, 30, 60))
    pen.rectangle((32, 32, 63, 47), fill=(20, 90, 200))
    pen.rectangle((0, 40, 15, 47), fill=(0, 0, 0))
    return picture


def decoded(encoded: bytes) -> NDArray[np.float32]:
    """The decoded picture as (H, W, 3)."""
    pixels = decode_image(encoded, LIMITS)
    assert pixels.dtype == torch.uint8
    return pixels.permute(1, 2, 0).numpy().astype(np.float32)


def difference(encoded: bytes, expected: Image.Image) -> float:
    """Mean absolute difference to `expected`, of the same size."""
    found, expected_pixels = decoded(encoded), np.asarray(expected.convert("RGB"), dtype=np.float32)
    assert found.shape == expected_pixels.shape
    return float(np.abs(found - expected_pixels).mean())


@pytest.mark.parametrize("image_format", PILLOW_NAMES.values())
def test_every_format_gives_back_its_picture(image_file: ImageFile, image_format: str) -> None:
    encoded = image_file(drawing(), image_format)
    assert difference(encoded, drawing()) <= (0 if image_format in LOSSLESS else LOSSY_TOLERANCE)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("WEBP", {"lossless": True, "exact": True}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
        ("HEIF", {"quality": -1, "chroma": 444}),
    ],
)
def test_transparency_is_blended_over_white(
    image_file: ImageFile, image_format: str, options: dict[str, int | str]
) -> None:
    picture = Image.new("RGBA", (20, 20), (200, 0, 0, 0))
    picture.paste((0, 0, 0, 128), (0, 0, 10, 20))
    found = decoded(image_file(picture, image_format, **options))
    assert np.abs(found[10, 2] - 127).max() <= 2
    assert (found[10, 15] == 255).all()


def test_a_jpeg_of_cmyk_is_decoded_as_its_inks_print(image_file: ImageFile) -> None:
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    assert np.abs(decoded(image_file(red, "JPEG")) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("bits", [8, 16])
def test_zero_is_white_in_a_grey_tiff_that_does_not_say_what_it_is(image_file: ImageFile, bits: int) -> None:
    ramp = np.arange(256, dtype=f"<u{bits // 8}").reshape(16, 16) * (257 if bits == 16 else 1)
    # A tag that no reader knows in place of the photometric interpretation.
    tiff = image_file(Image.fromarray(ramp), "TIFF").replace(
        struct.pack("<HHI", 262, 3, 1), struct.pack("<HHI", 261, 3, 1)
    )
    assert (decoded(tiff) == np.arange(255, -1, -1).reshape(16, 16, 1)).all()


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_decoded(image_file: ImageFile, image_format: str) -> None:
    other = Image.new("RGB", (64, 48), (0, 255, 0))
    encoded = image_file(drawing(), image_format, save_all=True, append_images=[other])
    assert difference(encoded, drawing()) <= (0 if image_format in LOSSLESS else LOSSY_TOLERANCE)


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"subsampling": 0}, {"quality": 100}])
def test_every_way_to_write_a_jpeg_is_read(image_file: ImageFile, options: dict[str, int]) -> None:
    assert difference(image_file(drawing(), "JPEG", **options), drawing()) <= LOSSY_TOLERANCE


def test_a_grey_jpeg_is_decoded_to_grey(image_file: ImageFile) -> None:
    grey = drawing().convert("L")
    assert difference(image_file(grey, "JPEG"), grey) <= LOSSY_TOLERANCE


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiffs_are_read(image_file: ImageFile, compression: str) -> None:
    assert difference(image_file(drawing(), "TIFF", compression=compression), drawing()) == 0


def test_a_camera_file_of_several_pictures_shows_its_first(image_file: ImageFile) -> None:
    thumbnail = Image.new("RGB", (64, 48), (0, 255, 0))
    encoded = image_file(drawing(), "MPO", save_all=True, append_images=[thumbnail])
    assert difference(encoded, drawing()) <= LOSSY_TOLERANCE


def test_one_pixel_is_a_picture(image_file: ImageFile) -> None:
    assert decoded(image_file(Image.new("RGB", (1, 1), (9, 8, 7)))).tolist() == [[[9, 8, 7]]]
