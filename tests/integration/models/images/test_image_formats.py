"""decode_image gives the displayed RGB for every supported format and mode."""

from __future__ import annotations

import struct
import zlib
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


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "GIF"])
def test_every_opaque_mode_is_decoded_to_rgb(image_file: ImageFile, image_format: str, mode: str) -> None:
    picture = drawing().convert(mode)
    assert difference(image_file(picture, image_format), picture) == 0


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {}),
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


def test_grey_with_transparency_is_blended_over_white(image_file: ImageFile) -> None:
    found = decoded(image_file(Image.new("LA", (20, 20), (0, 64)), "PNG"))
    assert np.abs(found - 191).max() <= 1


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(image_file: ImageFile, image_format: str) -> None:
    picture = Image.new("P", (20, 20), 0)
    picture.putpalette([10, 20, 30, 200, 30, 60])
    picture.paste(1, (0, 0, 10, 20))
    found = decoded(image_file(picture, image_format, transparency=0))
    assert found[10, 2].tolist() == [200, 30, 60]
    assert found[10, 15].tolist() == [255, 255, 255]


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_is_decoded_as_its_inks_print(image_file: ImageFile, image_format: str) -> None:
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    assert np.abs(decoded(image_file(red, image_format)) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_eight_bits(image_file: ImageFile, image_format: str) -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    found = decoded(image_file(Image.fromarray(ramp), image_format))
    assert (found == np.arange(256).reshape(16, 16, 1)).all()


def test_a_big_endian_sixteen_bit_tiff_is_read_alike(image_file: ImageFile) -> None:
    ramp = (np.arange(256).reshape(16, 16) * 257).astype(">u2")
    found = decoded(image_file(Image.fromarray(ramp), "TIFF"))
    assert (found == np.arange(256).reshape(16, 16, 1)).all()


def grey_tiff(bits: int, photometric: int | None, compression: int, pixels: bytes) -> bytes:
    """16 x 16 of one sample, little-endian; without a photometric interpretation for None."""
    packed = zlib.compress(pixels) if compression == 8 else pixels
    known = {
        256: 16,
        257: 16,
        258: bits,
        259: compression,
        262: photometric,
        273: -1,
        277: 1,
        278: 16,
        279: len(packed),
    }
    tags = {tag: value for tag, value in known.items() if value is not None}
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, start if value < 0 else value) for tag, value in tags.items()]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + packed


@pytest.mark.parametrize("compression", [1, 8])
def test_twelve_bit_grey_keeps_its_upper_eight_bits(compression: int) -> None:
    ramp = [shade * 16 + shade // 16 for shade in range(256)]
    pairs = zip(ramp[::2], ramp[1::2], strict=True)
    pixels = b"".join(int.to_bytes(one << 12 | other, 3, "big") for one, other in pairs)
    assert (decoded(grey_tiff(12, 1, compression, pixels)) == np.arange(256).reshape(16, 16, 1)).all()


@pytest.mark.parametrize("photometric", [0, None])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_grey_tiff_whose_zero_is_white_is_inverted(bits: int, photometric: int | None) -> None:
    ramp = np.arange(256, dtype="<u2") * 257 if bits == 16 else np.arange(256, dtype=np.uint8)
    found = decoded(grey_tiff(bits, photometric, 1, ramp.tobytes()))
    assert (found == np.arange(255, -1, -1).reshape(16, 16, 1)).all()


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


def test_an_interlaced_png_is_read() -> None:
    # Adam7 sends an 8 x 8 picture in seven passes; Pillow writes none, so the passes are laid out here.
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, across in passes for row in picture[top::down, left::across]
    )

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)
    encoded = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert (decoded(encoded) == picture).all()


def test_one_pixel_is_a_picture(image_file: ImageFile) -> None:
    assert decoded(image_file(Image.new("RGB", (1, 1), (9, 8, 7)))).tolist() == [[[9, 8, 7]]]
