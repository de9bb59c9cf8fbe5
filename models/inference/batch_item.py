"""What a batch is made of, and what it comes back as. Whoever decodes needs no more of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.interface.cancellation import Wanted, always


class BatchItem(NamedTuple):
    """One image for the device: (3, H, W) uint8 of the model's input size, how many classes are wanted (0: features
    alone), and whether anybody still waits for them."""

    image: torch.Tensor
    top_k: int
    wanted: Wanted = always


@dataclass(frozen=True, slots=True)
class ItemOutput:
    """One image's answer: features (D,) float32; the indices (top_k,) int64 and probabilities (top_k,) float32 of
    the likeliest classes, most probable first, or None where none were asked for. Views into the batch's arrays.

    `finite`: whether all its numbers are numbers. A network can overflow, and JSON has no way to say so.
    """

    features: NDArray[np.float32]
    indices: NDArray[np.int64] | None
    probabilities: NDArray[np.float32] | None
    finite: bool
