"""What is refused before it costs anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Checked on an image's header, before any decode.

    `max_aspect_ratio` guards the resize, which brings the shorter side up to the model's size: a line of
    1 x 65535 pixels would become 256 x 16 million. `max_decode_seconds`: CPU seconds that a decode may take by the
    prediction of models/images/cost.py; `max_decode_bytes`: memory that it may take by that, and that the expensive
    decodes of a service may take together.
    """

    max_pixels: int = 50_000_000
    max_aspect_ratio: int = 50
    max_decode_seconds: float = 1.0
    max_decode_bytes: int = 224 * 2**20
