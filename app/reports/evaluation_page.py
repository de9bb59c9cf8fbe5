"""An evaluation as an HTML page."""

from __future__ import annotations

import io
from base64 import b64encode
from pathlib import Path

from PIL import Image

from app.reports.html import render
from models.images.preprocessing import decode_image
from models.interface.errors import ImageError
from models.interface.request import ImageLimits
from models.offline import files
from models.offline.evaluating import Evaluation

# Classes shown at once; the others are in a collapsed part.
_CLASSES = 15

# Longer side in pixels: twice the displayed size, for high-resolution screens.
_PICTURE_SIDE = 360
_JPEG_QUALITY = 80


def page(evaluation: Evaluation, limits: ImageLimits) -> str:
    """Render the page. `limits` apply to the images whose thumbnails it shows."""
    return render(
        "evaluation_page.html.jinja",
        evaluation=evaluation,
        first_classes=evaluation.classes[:_CLASSES],
        other_classes=evaluation.classes[_CLASSES:],
        mistakes=[
            (mistake, files.name(Path(mistake.path).name), _picture(mistake.path, limits))
            for mistake in evaluation.mistakes
        ],
        most_in_a_bin=max((found.images for found in evaluation.bins), default=0),
    )


def _picture(path: str, limits: ImageLimits) -> str | None:
    """Return a thumbnail of the file as a data: URI, or None if the file can no longer be read."""
    try:
        pixels = decode_image(Path(path).read_bytes(), limits, enough=_PICTURE_SIDE)
    except (ImageError, OSError):
        return None
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + b64encode(file.getvalue()).decode()
