"""Limits on images, which are checked before the decode."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits that are checked on an image's header.

    max_pixels: width x height.
    max_aspect_ratio: long side / short side. It protects the resize, which enlarges the short side to the model's
        input size: 1 x 65535 pixels would become 256 x 16 million.
    max_decode_seconds: predicted CPU seconds of a decode (models/images/formats.py).
    max_decode_bytes: predicted memory of a decode, and of all concurrent expensive decodes together.
    """

    max_pixels: int = 50_000_000
    max_aspect_ratio: int = 50
    max_decode_seconds: float = 1.0
    max_decode_bytes: int = 224 * 2**20
