"""Small pictures of files, to be looked at."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from models.images.preprocessing import decode_image
from models.interface.errors import ImageError
from models.interface.image_limits import ImageLimits

_QUALITY = 80


def thumbnail(path: str, limits: ImageLimits, side: int) -> bytes | None:
    """The image in that file as a JPEG, its longer side `side` pixels or fewer; None where it cannot be read."""
    try:
        pixels = decode_image(Path(path).read_bytes(), limits, enough=side)
    except (ImageError, OSError):
        return None
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
