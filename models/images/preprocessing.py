"""The whole way from an image file to what a model takes: everybody who has images goes it by this one function."""

from __future__ import annotations

import torch

from models.images import cost
from models.images.decode import Pixels, decode_pixels
from models.images.transforms import Transform
from models.interface.image_limits import ImageLimits


def decode_image(encoded: bytes, limits: ImageLimits, *, enough: int | None = None) -> torch.Tensor:
    """Return the picture in `encoded` as a (3, H, W) uint8 RGB tensor on the CPU, channels last in memory.

    `enough` as in models.images.decode.decode_pixels. Raises ImageError, TooCostlyError before any decode.
    """
    cost.predict(encoded, limits, enough=enough)
    return to_tensor(decode_pixels(encoded, limits, enough=enough))


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """View (H, W, 3) uint8 as (3, H, W), channels last in memory."""
    # Transposed before it is a tensor: PyTorch would release the GIL for it, and wait to have it back.
    return torch.from_numpy(pixels.transpose(2, 0, 1))


def preprocess(encoded: bytes, transform: Transform, limits: ImageLimits) -> torch.Tensor:
    """(3, crop, crop) uint8 RGB, channels last in memory, of the image in `encoded`. Raises ImageError."""
    return transform.shape(decode_image(encoded, limits, enough=pixels_needed(transform)))


def pixels_needed(transform: Transform) -> int:
    """The shorter side that a reduced decode must keep. Twice the size is resized with antialiasing to the same
    picture, whatever was left out above it."""
    return 2 * transform.resize
