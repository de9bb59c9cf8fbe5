"""Sample pictures, drawn with Pillow, that ImageNet networks classify correctly: for first requests and for tests."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from math import cos, pi, sin
from typing import Literal

from PIL import Image, ImageDraw

Sample = Literal["clock", "traffic-light", "crossword"]

# Drawn at twice the size and scaled down, which smooths the edges.
_SIDE = 800


def draw(sample: Sample) -> Image.Image:
    """Return the sample, 400 x 400 RGB, with the same pixels every time."""
    picture = Image.new("RGB", (_SIDE, _SIDE))
    _DRAW[sample](ImageDraw.Draw(picture))
    return picture.resize((_SIDE // 2, _SIDE // 2), Image.Resampling.LANCZOS)


def encode(picture: Image.Image, image_format: str) -> bytes:
    """Return the picture as an image file of that Pillow format, say PNG or JPEG."""
    file = BytesIO()
    picture.save(file, image_format)
    return file.getvalue()


def _clock(pen: ImageDraw.ImageDraw) -> None:
    pen.rectangle((0, 0, _SIDE, _SIDE), fill=(196, 178, 150))
    middle, radius = _SIDE / 2, 340
    _disc(pen, middle, middle, radius, fill=(60, 40, 25))
    _disc(pen, middle, middle, radius - 30, fill=(250, 248, 240))
    for minute in range(60):
        long = minute % 5 == 0
        _hand(pen, middle, minute / 60, radius - (80 if long else 55), radius - 42, width=10 if long else 4)
    for hour in range(1, 13):
        angle = 2 * pi * hour / 12
        at = (middle + 225 * sin(angle), middle - 225 * cos(angle))
        pen.text(at, str(hour), fill=(20, 20, 20), anchor="mm", font_size=60)
    _hand(pen, middle, (10 + 9 / 60) / 12, -30, 150, width=18)
    _hand(pen, middle, 9 / 60, -40, 230, width=12)
    _disc(pen, middle, middle, 16, fill=(160, 30, 30))


def _traffic_light(pen: ImageDraw.ImageDraw) -> None:
    pen.rectangle((0, 0, _SIDE, _SIDE), fill=(150, 190, 225))
    pen.rectangle((375, 640, 425, _SIDE), fill=(70, 70, 70))
    pen.rounded_rectangle((260, 60, 540, 660), radius=50, fill=(30, 32, 30), outline=(12, 12, 12), width=10)
    lights = ((160, (235, 45, 35), (90, 15, 15)), (360, (90, 72, 15), (60, 48, 10)), (560, (20, 75, 35), (12, 50, 24)))
    for y, colour, rim in lights:
        _disc(pen, 400, y, 88, fill=rim)
        _disc(pen, 400, y, 76, fill=colour)


def _crossword(pen: ImageDraw.ImageDraw) -> None:
    pen.rectangle((0, 0, _SIDE, _SIDE), fill=(252, 252, 248))
    cells, margin = 11, 42
    step = (_SIDE - 2 * margin) / cells
    number = 1
    for row in range(cells):
        for column in range(cells):
            left, top = margin + column * step, margin + row * step
            black = (row % 2 == 1 and column % 2 == 1) or (row * column) % 7 == 3  # noqa: PLR2004 - a pattern
            pen.rectangle(
                (left, top, left + step, top + step), fill="black" if black else "white", outline="black", width=3
            )
            if not black and (row % 2 == 0 and column % 3 == 0):
                pen.text((left + 6, top + 4), str(number), fill="black", font_size=18)
                number += 1


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, *, fill: tuple[int, int, int]) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _hand(pen: ImageDraw.ImageDraw, middle: float, turn: float, start: float, end: float, *, width: int) -> None:
    """Draw a line from `start` to `end` pixels from the middle, at the fraction `turn` of the dial."""
    x, y = sin(2 * pi * turn), -cos(2 * pi * turn)
    pen.line(
        (middle + start * x, middle + start * y, middle + end * x, middle + end * y), fill=(15, 15, 15), width=width
    )


_DRAW: dict[Sample, Callable[[ImageDraw.ImageDraw], None]] = {
    "clock": _clock,
    "traffic-light": _traffic_light,
    "crossword": _crossword,
}
