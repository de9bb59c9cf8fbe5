"""What the lens found, as plain records, readable without torch. How it is measured is gradmodes.py's business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["grad", "no_grad", "set_grad_enabled_false", "inference_mode"]


@dataclass(frozen=True, slots=True)
class Retained:
    """What autograd keeps for a backward pass: bytes of the distinct storages, and how many there are."""

    bytes: int
    tensors: int


@dataclass(frozen=True, slots=True)
class ModeReport:
    """One mode's forward. `max_abs_difference` is the largest one of any logit to inference_mode's."""

    mode: Mode
    median_seconds: float
    retained: Retained
    output_requires_grad: bool
    max_abs_difference: float


@dataclass(frozen=True, slots=True)
class Comparison:
    model: str
    fingerprint: str
    device: str
    batch_size: int
    iterations: int
    modes: tuple[ModeReport, ...]
