"""Turn a picture of any mode that Pillow has read into RGB, strip by strip, with transparent parts over white."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from models.images.colour import Pixels
from models.images.pillow_reading import BITS_PER_SAMPLE, LARGEST_8_BIT, PHOTOMETRIC_INTERPRETATION, Opened, undecodable

_LARGEST_16_BIT = 65535
# A value of the TIFF tag. Pillow assumes it where the tag is missing.
_WHITE_IS_ZERO = 0
# Pixels converted at once. Conversions copy their input; strips avoid a second copy of a large image.
_STRIP_PIXELS = 500_000


def strips(opened: Opened, image_format: str | None) -> Iterator[Pixels]:
    """Yield the loaded picture in strips of rows, (rows, width, 3) uint8 RGB each."""
    image = opened.image
    with undecodable(image_format):
        if image_format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
            # Programs that write a mask for alpha and leave the bytes empty mean an opaque picture, as browsers know.
            image = image.convert("RGB")
        tables = opened.by_tables()
        convert: Callable[[Image.Image, int], Pixels] = _over_white
        if tables is not None and image.mode == "CMYK":
            convert, tables = partial(_by_tables, tables), None
        elif image.mode.startswith("I"):
            convert = _from_16_bit(opened)
        elif opened.png is not None and opened.png.transparent_colour is not None:
            convert = _over_white_but(opened)
        rows = max(1, _STRIP_PIXELS // image.width)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            whole = rows >= image.height
            pixels = convert(image if whole else image.crop((0, top, image.width, bottom)), top)
            if tables is not None:
                pixels = _by_tables(tables, Image.fromarray(pixels))
            if opened.box is not None:
                _whiten_outside(pixels, top, opened.box)
            yield pixels


def _by_tables(tables: ImageCms.ImageCmsTransform, image: Image.Image, _top: int = 0) -> Pixels:
    return np.array(ImageCms.applyTransform(image, tables))


def _over_white(image: Image.Image, _top: int = 0) -> Pixels:
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return np.array(white)


def _over_white_but(opened: Opened) -> Callable[[Image.Image, int], Pixels]:
    """Return the conversion of a PNG with one transparent colour, which is compared with the samples of the file."""
    png, again = opened.png, opened.again
    assert png is not None and again is not None  # noqa: PT018, S101 - for the type checker
    colour_of_file = png.transparent_colour
    assert colour_of_file is not None  # noqa: S101 - as above
    # Pillow scales samples of fewer bits to eight, and keeps the upper byte of those of sixteen.
    sixteen = png.depth > 8  # noqa: PLR2004 - bits
    scale = 1 if sixteen else LARGEST_8_BIT // ((1 << png.depth) - 1)
    upper = np.array([each >> 8 if sixteen else each * scale for each in colour_of_file])
    low = None
    if sixteen:
        # Read as if in the other byte order, the lower byte is the upper one.
        low = again()
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()

    def convert(strip: Image.Image, top: int) -> Pixels:
        pixels = np.array(strip.convert("RGB"))
        transparent = (pixels == upper).all(axis=2)
        if low is not None:
            lower = np.asarray(low.crop((0, top, strip.width, top + strip.height)))
            transparent &= (lower == np.array(colour_of_file) % 256).all(axis=2)
        pixels[transparent] = LARGEST_8_BIT
        return pixels

    return convert


def _from_16_bit(opened: Opened) -> Callable[[Image.Image, int], Pixels]:
    tags = getattr(opened.image, "tag_v2", None)
    # Pillow inverts such TIFFs with 8 bits, but not with 16.
    inverted = tags is not None and tags.get(PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    bits = 12 if tags is not None and tags.get(BITS_PER_SAMPLE) == (12,) else 16
    transparent = None if opened.png is None else opened.png.transparent_colour

    def convert(strip: Image.Image, _top: int) -> Pixels:
        grey: NDArray[np.uint16] = np.asarray(strip)
        if inverted:
            grey = _LARGEST_16_BIT - grey
        # Keep the upper eight bits; Pillow's conversion would clip everything above 255 to white.
        pixels = np.repeat((grey >> (bits - 8)).astype(np.uint8)[:, :, None], 3, axis=2)
        if transparent is not None:
            pixels[grey == transparent[0]] = LARGEST_8_BIT
        return pixels

    return convert


def _whiten_outside(pixels: Pixels, top: int, box: tuple[int, int, int, int]) -> None:
    """Make the part of a strip white that is outside of `box`. `top` is the first row of the strip."""
    left, upper, right, lower = box
    pixels[: max(0, upper - top)] = LARGEST_8_BIT
    pixels[max(0, lower - top) :] = LARGEST_8_BIT
    pixels[:, :left] = LARGEST_8_BIT
    pixels[:, right:] = LARGEST_8_BIT
