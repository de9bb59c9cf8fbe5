"""Preprocessing is part of the model: the geometry runs on uint8 pixels before the queue, the arithmetic on
the device with the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812 - the field's name for it

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True)
class Transform:
    """Resize the shorter side to `resize` pixels with antialiasing, crop the middle `crop` x `crop`, scale to
    0..1, subtract `mean`, divide by `std` (each per RGB channel)."""

    resize: int
    crop: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def shape(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 to (3, crop, crop) uint8, channels last in memory, as decoders write and devices like it."""
        resized = F.resize(image, [self.resize], interpolation=InterpolationMode(self.interpolation), antialias=True)
        cropped: torch.Tensor = F.center_crop(resized, [self.crop, self.crop])
        return cropped.permute(1, 2, 0).contiguous().permute(2, 0, 1)


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
