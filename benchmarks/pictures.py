"""Request bodies: JPEG files of a folder, or drawn pictures with the entropy of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Common quality of cameras and web pages: some 50 to 110 kB at 500 x 375.
QUALITY = 85

# Width, height and how many to draw: the default set, and the larger ones for the cost by size.
SIZES: dict[str, tuple[int, int, int]] = {
    "0.2 MP": (500, 375, 40),
    "3 MP": (2048, 1536, 4),
    "12 MP": (4000, 3000, 2),
}

# Different pictures of a large folder; the others are links to them, which cost as much to read and decode.
DRAWN = 200


def megapixels(size: str) -> float:
    """Return the megapixels of a name in SIZES."""
    width, height, _ = SIZES[size]
    return width * height / 1e6


def jpegs(folder: Path) -> list[Path]:
    """Return the JPEG files of `folder` by name. Raises ValueError if there is none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg"})
    if not found:
        raise ValueError(f"{folder} has no .jpg or .jpeg file")
    return found


def draw_all(folder: Path) -> dict[str, list[Path]]:
    """Draw files of every size in SIZES, each size in a subfolder of `folder`, with the same pixels in each run."""
    drawn: dict[str, list[Path]] = {}
    for size, (width, height, count) in SIZES.items():
        of_size = folder / f"{width}x{height}"
        of_size.mkdir()
        paths = [of_size / f"{number:02}.jpg" for number in range(count)]
        for number, path in enumerate(paths):
            draw(width, height, seed=number).save(path, "JPEG", quality=QUALITY)
        drawn[size] = paths
    return drawn


def draw_linked(folder: Path, many: int, few: int) -> tuple[Path, Path, Path]:
    """Create folders of DRAWN pictures of 500 x 375 pixels, of `many` and of `few` links to them. Return all three."""
    drawn, *linked = (folder / name for name in ("drawn", "many", "few"))
    drawn.mkdir()
    for number in range(DRAWN):
        draw(500, 375, seed=number).save(drawn / f"{number:03}.jpg", "JPEG", quality=QUALITY)
    for links, count in zip(linked, (many, few), strict=True):
        links.mkdir()
        for number in range(count):
            (links / f"{number:06}.jpg").hardlink_to(drawn / f"{number % DRAWN:03}.jpg")
    return drawn, linked[0], linked[1]


def draw(width: int, height: int, *, seed: int) -> Image.Image:
    """Draw a gradient, shapes with edges and texture of every scale, as in photographs."""
    random = np.random.default_rng(seed)
    picture = Image.fromarray(_gradient(width, height, random))
    _shapes(ImageDraw.Draw(picture), width, height, random)
    textured = np.asarray(picture, dtype=np.float32) + _texture(width, height, random)[:, :, None]
    return Image.fromarray(textured.clip(0, 255).astype(np.uint8))


def _gradient(width: int, height: int, random: np.random.Generator) -> NDArray[np.uint8]:
    top, bottom = random.uniform(0, 255, (2, 1, 1, 3))
    down = np.linspace(0, 1, height)[:, None, None]
    colours = top * (1 - down) + bottom * down
    return np.broadcast_to(colours, (height, width, 3)).astype(np.uint8)


def _shapes(pen: ImageDraw.ImageDraw, width: int, height: int, random: np.random.Generator) -> None:
    for number in range(30):
        x, y = random.uniform(0, width), random.uniform(0, height)
        half = random.uniform(0.02, 0.15) * width
        box = (x - half, y - half, x + half, y + half)
        red, green, blue = (int(channel) for channel in random.integers(0, 256, 3))
        shape = pen.ellipse if number % 2 else pen.rectangle
        shape(box, fill=(red, green, blue))


def _texture(width: int, height: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return (height, width) noise of several frequencies with a standard deviation from 10 to 25."""
    strength = random.uniform(0.7, 1.8)
    total = np.zeros((height, width), dtype=np.float32)
    for octave, amplitude in ((32, 8.0), (8, 8.0), (2, 8.0), (1, 6.0)):
        cells = (-(-height // octave), -(-width // octave))
        noise = Image.fromarray(random.normal(0, strength * amplitude, cells).astype(np.float32))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    return total
