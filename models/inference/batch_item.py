"""The input and output of the engine for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.interface.request import InferenceRequest


class BatchItem(NamedTuple):
    """One image: (3, H, W) uint8 of the model's input size, and its request without the encoded files."""

    image: torch.Tensor
    request: InferenceRequest


@dataclass(frozen=True, slots=True)
class ItemOutput:
    """One image's result: features (D,) float32; the indices (top_k,) int64 and probabilities (top_k,) float32 of
    the likeliest classes, most probable first. Both are None if `top_k` was 0. The arrays are views into the batch's.

    `finite`: whether all the numbers are finite. A network can overflow, and JSON cannot represent inf or NaN.
    """

    features: NDArray[np.float32]
    indices: NDArray[np.int64] | None
    probabilities: NDArray[np.float32] | None
    finite: bool
