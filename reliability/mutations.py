"""Small images with flipped bits, cut short and spliced."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from models.images.samples import draw, encode

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
SEED = 20_261_124

_MOST_FLIPS = 32
# Where formats keep their sizes and tables.
_HEADER = 128


def mutated_images(seed: int, count: int) -> Iterator[bytes]:
    """Yield `count` mutated images, the same for each seed."""
    source = random.Random(seed)  # noqa: S311 - a load, no secret
    originals = _originals()
    for _ in range(count):
        yield mutated(source.choice(originals), source, originals)


def mutated(data: bytes, source: random.Random, originals: Sequence[bytes]) -> bytes:
    """Return `data` with flipped bits, cut short, or spliced with one of `originals`."""
    changed = bytearray(data)
    for mutate in source.sample((_flip, _flip_header, _truncate, _splice), source.choice((1, 1, 2))):
        changed = mutate(changed, source, originals)
    return bytes(changed)


def _originals() -> Sequence[bytes]:
    clock, crossword = draw("clock"), draw("crossword")
    pictures = [clock.resize((160, 120)), crossword.resize((64, 64)).convert("L"), clock.resize((48, 48)).quantize(16)]
    return [
        encode(picture.convert("RGB") if image_format in {"JPEG", "WEBP"} else picture, image_format)
        for picture in pictures
        for image_format in FORMATS
    ]


def _flip(image: bytearray, source: random.Random, _originals: Sequence[bytes]) -> bytearray:
    return _flipped(image, source, len(image))


def _flip_header(image: bytearray, source: random.Random, _originals: Sequence[bytes]) -> bytearray:
    return _flipped(image, source, min(len(image), _HEADER))


def _flipped(image: bytearray, source: random.Random, within: int) -> bytearray:
    for _ in range(source.randint(1, _MOST_FLIPS) if within else 0):
        image[source.randrange(within)] ^= 1 << source.randrange(8)
    return image


def _truncate(image: bytearray, source: random.Random, _originals: Sequence[bytes]) -> bytearray:
    return image[: source.randrange(len(image) + 1)]


def _splice(image: bytearray, source: random.Random, originals: Sequence[bytes]) -> bytearray:
    other = source.choice(originals)
    return image[: source.randrange(len(image) + 1)] + other[source.randrange(len(other)) :]
