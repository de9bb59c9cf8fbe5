"""Devices and precisions: which there are, which go together, and how busy a device is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from models.interface.errors import DeviceUnavailableError
from models.interface.model_sources import Precision

_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    # The type of inputs and outputs; the products inside are int8.
    "int8": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """The device of a model, the precision of its forward, and the name of its backend."""

    device: torch.device
    precision: Precision
    backend: str

    @property
    def dtype(self) -> torch.dtype:
        return _DTYPES[self.precision]

    @property
    def dtype_name(self) -> str:
        """The precision as users see it: float32, bfloat16, float16 or int8."""
        return "int8" if self.precision == "int8" else str(self.dtype).removeprefix("torch.")


def device_of(name: str) -> torch.device:
    """Return the device of that name; `auto` is CUDA, else MPS, else the CPU. Raises DeviceUnavailableError."""
    return torch.device(first_available() if name == "auto" else _checked(name))


def at_precision(placement: Placement, precision: Precision) -> Placement:
    """Return the same device and backend in another precision. Raises DeviceUnavailableError if the device does not
    compute in it."""
    device = placement.device
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceUnavailableError(str(device), "it has no bf16 arithmetic; use fp16 or fp32")
    if precision == "fp16" and device.type == "cpu":
        raise DeviceUnavailableError(str(device), "fp16 is for GPUs; use bf16 or fp32")
    return replace(placement, precision=precision)


def first_available() -> str:
    """Return the type of device that `auto` selects: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def utilization(device: torch.device) -> float | None:
    """Return the share of the driver's last sample (1 s or less) in which a kernel ran, 0..1, without synchronizing.
    None without CUDA or nvidia-ml-py."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # noqa: BLE001 - NVML's errors have no common base class; MIG slices have no utilization
        return None


def _checked(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailableError(name, "use auto, cpu, cuda, cuda:N or mps") from error
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise DeviceUnavailableError(name, "PyTorch does not find it on this machine")
    return name
