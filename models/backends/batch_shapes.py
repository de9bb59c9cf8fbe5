"""How large a batch is, and into which pieces PyTorch's own forward is cut on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.hardware import cores
from models.hardware.placement import Placement

_LARGEST_BATCH = 32


# Activations of more leave a core's caches.
_IMAGES_A_CORE = 4


# Last-level caches of current servers hold as much.
_LIGHT_WEIGHTS_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Split:
    """How a batch is cut up for PyTorch's own forward: pieces of up to `piece` images, `workers` of them at a time on
    one core each. One worker means one piece after another, each on all cores."""

    piece: int
    workers: int


def eager_split(device: torch.device, weight_bytes: int) -> Split | None:
    """None where a batch is best run whole. On the CPU it is not: activations of more than some 16 images outgrow
    what the allocator keeps, and the forward is bound by page faults.

    Networks whose weights stay in a core's reach run best in small pieces, one a core: PyTorch's kernels for them are
    too short to share out (EfficientNet-Lite0, two cores: 90 images/s against 75). Larger weights are better read once
    for many images (ResNet-50: 19 against 16).
    """
    if device.type != "cpu":
        return None
    return (
        Split(_IMAGES_A_CORE, workers=cores.available_cores()) if weight_bytes <= _LIGHT_WEIGHTS_BYTES else Split(16, 1)
    )


def batch_size(placement: Placement, weight_bytes: int) -> int:
    """Images of one forward at most, where nobody says otherwise: 32, on a CPU only as many as keep its cores busy.

    More would not be faster there, but whoever comes meanwhile waits for the whole forward: with batches of 32 on two
    cores for a quarter of a second, even if all who are in it have hung up.
    """
    if placement.device.type != "cpu":
        return _LARGEST_BATCH
    split = eager_split(placement.device, weight_bytes) if placement.backend == "eager" else None
    return min(_LARGEST_BATCH, split.piece * split.workers if split else _IMAGES_A_CORE * cores.available_cores())
