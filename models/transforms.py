"""Preprocessing is part of the model: the geometry runs on uint8 pixels before the queue, the arithmetic on
the device with the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812 - the field's name for it

Interpolation = Literal["bilinear", "bicubic"]

# How a picture of any proportions becomes a square: what is over is cut off; it is stretched; or its longer side is
# the one that is resized, and a border of the mean colour fills up what is missing.
Fit = Literal["crop", "stretch", "pad"]


@dataclass(frozen=True, slots=True)
class Transform:
    """Resize the shorter side to `resize` pixels with antialiasing (both sides or the longer one, as `fit` says), crop
    the middle `crop` x `crop`, scale to 0..1, subtract `mean`, divide by `std` (each per RGB channel)."""

    resize: int
    crop: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    # Not in what fingerprints are made of unless it is another: it came later.
    fit: Fit = field(default="crop", repr=False)

    def shape(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 to (3, crop, crop) uint8, channels last in memory, as decoders write and devices like it."""
        size = self._resized(*image.shape[1:])
        resized = F.resize(image, size, interpolation=InterpolationMode(self.interpolation), antialias=True)
        if self.fit == "pad":
            resized = self._padded(resized)
        cropped: torch.Tensor = F.center_crop(resized, [self.crop, self.crop])
        return cropped.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def _resized(self, height: int, width: int) -> list[int]:
        """As torchvision wants it: one number is the shorter side's."""
        match self.fit:
            case "crop":
                return [self.resize]
            case "stretch":
                return [self.resize, self.resize]
            case "pad":
                scale = self.resize / max(height, width)
                return [max(1, round(height * scale)), max(1, round(width * scale))]

    def _padded(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) with a border around it, so that no side is under `crop`."""
        height, width = (max(0, self.crop - side) for side in image.shape[1:])
        left, top = width // 2, height // 2
        colour = [round(255 * mean) for mean in self.mean]
        # One channel at a time: torchvision pads a tensor with one number.
        channels = [
            F.pad(channel[None], [left, top, width - left, height - top], fill=value)
            for channel, value in zip(image, colour, strict=True)
        ]
        return torch.cat(channels)


class Normalize(nn.Module):
    """(N, 3, H, W) uint8 to (N, 3, H, W) float32: (x / 255 - mean) / std."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        mean = torch.tensor(transform.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(transform.std, dtype=torch.float64).view(1, 3, 1, 1)
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float() * self.scale + self.shift
