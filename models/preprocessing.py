"""The whole way from an image file to what a model takes: everybody who has images goes it by this one function."""

from __future__ import annotations

import torch

from models.images import decode_image
from models.limits import ImageLimits
from models.transforms import Transform


def preprocess(encoded: bytes, transform: Transform, limits: ImageLimits) -> torch.Tensor:
    """(3, crop, crop) uint8 RGB, channels last in memory, of the image in `encoded`. Raises ImageError."""
    # Twice the size is resized with antialiasing to the same picture, whatever was left out above it.
    return transform.shape(decode_image(encoded, limits, enough=2 * transform.resize))
