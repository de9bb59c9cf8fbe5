"""Encoded images: good ones, some to be refused, and expensive ones."""

from __future__ import annotations

import random
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from models.images.samples import draw, encode

# Over GRADLESS_MAX_IMAGE_PIXELS, in some 100 kB.
_VAST = (9000, 9000)
_TWELVE_MEGAPIXELS = (4000, 3000)
# Incompressible: three bytes a pixel.
_NOISE = (2300, 2200)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Encoded images, identical in each run."""

    clock: bytes
    small: bytes
    truncated: bytes
    vast: bytes
    photograph: bytes
    noise: bytes


def draw_pictures() -> Pictures:
    """Draw all of them, in a second or two."""
    clock = encode(draw("clock"), "JPEG")
    return Pictures(
        clock=clock,
        small=encode(Image.new("L", (8, 8), 200), "PNG"),
        truncated=encode(draw("crossword"), "PNG")[:2000],
        vast=encode(Image.new("L", _VAST, 200), "PNG"),
        photograph=encode(draw("clock").resize(_TWELVE_MEGAPIXELS), "JPEG"),
        noise=_noise(),
    )


def _noise() -> bytes:
    width, height = _NOISE
    pixels = random.Random(0).randbytes(width * height * 3)  # noqa: S311 - a picture, no secret
    file = BytesIO()
    Image.frombytes("RGB", _NOISE, pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()
