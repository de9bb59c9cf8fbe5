"""Whether a backend gives what the network gives: compared at the warm-up, on one drawn picture.

A conversion can go wrong, and what was converted earlier can be damaged on disk; either gives finite numbers, and wrong
classes. The comparison takes one forward of one image by PyTorch in float32 and one more by the backend: 0.1 s for the
default model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from models import backends
from models.hardware import memory
from models.hardware.placement import Precision
from models.images import samples
from models.images.transforms import Transform
from models.interface.errors import DisagreementError
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits

_log = logging.getLogger(__name__)

T = TypeVar("T")

# How far features and logits may be from PyTorch's in float32: the length of the difference over the length of
# PyTorch's. Zeros are at 1. The largest seen on the drawn clock, on CPUs, of EfficientNet-Lite0 and random ResNets,
# DenseNets, ConvNeXts and ViTs: fp32 1e-6, bf16 0.03, int8 calibrated on 12 pictures 0.2. A random MobileNetV3 is at 1
# with int8: its answers are of no use.
_TOLERANCES: dict[Precision, float] = {"fp32": 0.02, "fp16": 0.05, "bf16": 0.2, "int8": 0.6}

# Of each number: outputs that are next to nothing are compared with this in place of themselves.
_FLOOR = 1e-3


def drawn_picture(transform: Transform) -> torch.Tensor:
    """(3, crop, crop) uint8, channels last in memory: the same drawn clock each time."""
    pixels = np.array(samples.draw("clock").resize((transform.crop, transform.crop)))
    return torch.from_numpy(pixels.transpose(2, 0, 1))


def reference(model: LoadedModel, pixels: torch.Tensor) -> FeaturesAndLogits | None:
    """What the loaded network gives in float32 for (N, 3, crop, crop) uint8 pixels, on the CPU. None where there is no
    memory for that beside what is served."""
    # Not inference_mode: what a network keeps of its first forward would be inference tensors for life.
    try:
        with torch.no_grad():
            features, logits = model.network(model.normalize(pixels.to(model.placement.device)))
    except Exception as error:
        if not memory.ran_out(error):
            raise
        _log.warning("%s is served without having been compared with PyTorch: there is no memory for it", model.name)
        return None
    return FeaturesAndLogits(features.float().cpu(), logits.float().cpu())


def check(model: LoadedModel, found: FeaturesAndLogits, expected: FeaturesAndLogits, pixels: torch.Tensor) -> None:
    """Compare a backend's answer for `pixels` with the `reference` for them. Raises DisagreementError."""
    tolerance = _TOLERANCES[model.placement.precision]
    difference = _difference(found, expected)
    # Not a number: no agreement.
    if difference <= tolerance:
        return
    again = reference(model, pixels)
    if again is not None and not _difference(again, expected) <= tolerance:
        _log.warning("%s gives another answer each time it is asked, so its backend cannot be checked", model.name)
        return
    raise DisagreementError(model.name, model.placement.backend, difference, tolerance)


def with_fresh_conversion(model: LoadedModel, serve: Callable[[bool], T]) -> T:
    """`serve(False)`, which may use what an earlier start has converted; where that disagrees with the network, once
    more `serve(True)`, which may not. Raises what `serve` raises."""
    if not backends.caches_conversions(model.placement) or model.quantized is not None:
        return serve(False)
    try:
        return serve(False)
    except DisagreementError as error:
        _log.warning("%s; it is converted again", error)
    # Outside the handler: the error's frames hold what was made.
    return serve(True)


def _difference(found: FeaturesAndLogits, expected: FeaturesAndLogits) -> float:
    return max(_relative(one.float().cpu(), other) for one, other in zip(found, expected, strict=True))


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return math.nan
    return float((found - expected).norm() / max(float(expected.norm()), _FLOOR * math.sqrt(expected.numel()), 1e-30))
