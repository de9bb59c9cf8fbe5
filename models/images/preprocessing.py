"""From an image file to the input of a model: serving, calibration and jobs all use these functions."""

from __future__ import annotations

import torch

from models.images import cost
from models.images.decode import decode_pixels, decode_strips
from models.images.transforms import Transform, to_tensor
from models.interface.request import ImageLimits


def decode_image(encoded: bytes, limits: ImageLimits, *, enough: int | None = None) -> torch.Tensor:
    """Return the picture in `encoded` as a (3, H, W) uint8 RGB tensor on the CPU, channels last in memory.

    `enough` as in models.images.decode.decode_pixels. Raises ImageError, TooCostlyError before any decode.
    """
    cost.predict(encoded, limits, enough=enough)
    return to_tensor(decode_pixels(encoded, limits, enough=enough))


def preprocess(encoded: bytes, transform: Transform, limits: ImageLimits) -> torch.Tensor:
    """(3, crop, crop) uint8 RGB, channels last in memory, of the image in `encoded`. Raises ImageError."""
    enough = pixels_needed(transform)
    cost.predict(encoded, limits, enough=enough)
    return transform.shape_strips(decode_strips(encoded, limits, enough=enough))


def pixels_needed(transform: Transform) -> int:
    """Return the shorter side that a reduced decode must keep. From twice the size on, antialiased resizing gives the
    same picture."""
    return 2 * transform.resize
