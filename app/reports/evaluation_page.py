"""An evaluation as one HTML file: figures, chart, pictures and style in it, nothing to fetch, for light and dark
screens."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.interface.image_limits import ImageLimits
from models.offline import files
from models.offline.evaluating import Evaluation
from models.offline.thumbnails import thumbnail

_TEMPLATE = "evaluation_page.html.jinja"

# Classes shown at once; the others are behind a click.
_CLASSES = 15

# In pixels; twice what is shown, for sharp screens.
_PICTURE_SIDE = 360


def page(evaluation: Evaluation, limits: ImageLimits) -> str:
    """`limits` are those of the images whose small pictures are put in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent}
    return environment.get_template(_TEMPLATE).render(
        evaluation=evaluation,
        first_classes=evaluation.classes[:_CLASSES],
        other_classes=evaluation.classes[_CLASSES:],
        mistakes=[
            (mistake, files.name(Path(mistake.path).name), _picture(mistake.path, limits))
            for mistake in evaluation.mistakes
        ],
        most_in_a_bin=max((found.images for found in evaluation.bins), default=0),
    )


def _percent(share: float) -> str:
    # Not to be broken before the sign.
    return f"{100 * share:.1f}\u00a0%"


def _picture(path: str, limits: ImageLimits) -> str | None:
    """A data: URI; None where the file is no longer what it was."""
    encoded = thumbnail(path, limits, _PICTURE_SIDE)
    return None if encoded is None else "data:image/jpeg;base64," + b64encode(encoded).decode()
