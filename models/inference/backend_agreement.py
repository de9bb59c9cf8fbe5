"""Check at the warm-up that a backend's outputs agree with those of PyTorch in float32, for one picture.

A faulty conversion, or a converted model that is damaged on disk, gives finite numbers and wrong classes.
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
from models.images.preprocessing import Transform
from models.interface.errors import DisagreementError
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Largest allowed |output - reference| / |reference|, of features and of logits. Largest measured values, on CPUs with 5
# architectures: fp32 1e-6, bf16 0.03, int8 0.2. All-zero outputs are at 1.
_TOLERANCES: dict[Precision, float] = {"fp32": 0.02, "fp16": 0.05, "bf16": 0.2, "int8": 0.6}

# Smallest root mean square of the reference in that quotient, so that outputs near zero are comparable.
_FLOOR = 1e-3


def drawn_picture(transform: Transform) -> torch.Tensor:
    """Return a fixed picture of a clock, (3, crop, crop) uint8, channels last in memory."""
    pixels = np.array(samples.draw("clock").resize((transform.crop, transform.crop)))
    return torch.from_numpy(pixels.transpose(2, 0, 1))


def reference(model: LoadedModel, pixels: torch.Tensor) -> FeaturesAndLogits | None:
    """Return the network's output for (N, 3, crop, crop) uint8 pixels, float32 on the CPU. None if there is no memory
    for that alongside the served models."""
    # Not inference_mode: tensors that a network caches in its first forward would stay inference tensors.
    try:
        with torch.no_grad():
            features, logits = model.network(model.normalize(pixels.to(model.placement.device)))
    except Exception as error:
        if not memory.ran_out(error):
            raise
        _log.warning("%s is served without a comparison with PyTorch: there is no memory for it", model.name)
        return None
    return FeaturesAndLogits(features.float().cpu(), logits.float().cpu())


def check(model: LoadedModel, found: FeaturesAndLogits, expected: FeaturesAndLogits, pixels: torch.Tensor) -> None:
    """Compare a backend's output for `pixels` with the reference `expected`. Raises DisagreementError."""
    tolerance = _TOLERANCES[model.placement.precision]
    difference = _difference(found, expected)
    # NaN compares false, so it is a disagreement.
    if difference <= tolerance:
        return
    again = reference(model, pixels)
    if again is not None and not _difference(again, expected) <= tolerance:
        _log.warning("%s is not deterministic, so its backend cannot be checked", model.name)
        return
    raise DisagreementError(model.name, model.placement.backend, difference, tolerance)


def with_fresh_conversion(model: LoadedModel, serve: Callable[[bool], T]) -> T:
    """Call `serve(False)`, which may use a cached conversion; if its outputs disagree, call `serve(True)`, which
    converts the model again. Raises what `serve` raises."""
    if not backends.caches_conversions(model.placement) or model.quantized is not None:
        return serve(False)
    try:
        return serve(False)
    except DisagreementError as error:
        _log.warning("%s; it is converted again", error)
    # Outside the handler: the frames of the error hold the first backend.
    return serve(True)


def _difference(found: FeaturesAndLogits, expected: FeaturesAndLogits) -> float:
    return max(_relative(one.float().cpu(), other) for one, other in zip(found, expected, strict=True))


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return math.nan
    return float((found - expected).norm() / max(float(expected.norm()), _FLOOR * math.sqrt(expected.numel()), 1e-30))
