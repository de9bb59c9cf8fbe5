"""Pictures of ten shapes, drawn with Pillow, as training data without licence."""

from __future__ import annotations

import random
from math import cos, pi, sin

from PIL import Image, ImageDraw

SHAPES = ("bars", "checks", "circle", "columns", "cross", "hexagon", "ring", "square", "star", "triangle")

_WIDTH, _HEIGHT = 112, 96


def draw(shape: str, chance: random.Random) -> Image.Image:
    """One of `SHAPES` in some colour, size and place on another colour, 112 x 96 pixels."""
    dark = tuple(chance.randrange(90) for _ in range(3))
    light = tuple(chance.randrange(150, 256) for _ in range(3))
    ground, ink = (dark, light) if chance.random() < 0.5 else (light, dark)
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), ground)
    pen = ImageDraw.Draw(picture)
    radius = chance.uniform(26, 40)
    x = _WIDTH / 2 + chance.uniform(-8, 8)
    y = _HEIGHT / 2 + chance.uniform(-8, 8)
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            pen.ellipse(box, fill=ink)
        case "ring":
            pen.ellipse(box, outline=ink, width=round(radius / 3))
        case "square":
            pen.rectangle(box, fill=ink)
        case "cross":
            pen.rectangle((x - radius, y - radius / 4, x + radius, y + radius / 4), fill=ink)
            pen.rectangle((x - radius / 4, y - radius, x + radius / 4, y + radius), fill=ink)
        case "bars" | "columns" | "checks":
            _pattern(pen, shape, box, ink)
        case "triangle" | "hexagon":
            pen.regular_polygon((x, y, radius), {"triangle": 3, "hexagon": 6}[shape], fill=ink)
        case "star":
            pen.polygon([_corner(x, y, radius * (1 if tip % 2 == 0 else 0.4), tip / 10) for tip in range(10)], fill=ink)
    return picture


def _pattern(
    pen: ImageDraw.ImageDraw, shape: str, box: tuple[float, float, float, float], ink: tuple[int, ...]
) -> None:
    left, top, right, _ = box
    step = (right - left) / 5
    for row in range(5):
        for column in range(5):
            inked = {"bars": row, "columns": column, "checks": row + column}[shape] % 2 == 0
            if inked:
                at = (left + column * step, top + row * step)
                pen.rectangle((*at, at[0] + step, at[1] + step), fill=ink)


def _corner(x: float, y: float, radius: float, turn: float) -> tuple[float, float]:
    return x + radius * sin(2 * pi * turn), y - radius * cos(2 * pi * turn)
