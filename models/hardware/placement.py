"""Device, precision and backend: which ones a model is placed on, and which go together."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import Literal

import torch

from models.interface.errors import DeviceUnavailableError

Precision = Literal["fp32", "bf16", "fp16", "int8"]


BackendName = Literal["eager", "compiled", "openvino"]


_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    # What goes in and comes out; int8 is what it multiplies.
    "int8": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model lives, in which floating-point type it computes, and by which backend it is served."""

    device: torch.device
    precision: Precision
    backend: BackendName | Literal["null"]

    @property
    def dtype(self) -> torch.dtype:
        return _DTYPES[self.precision]

    @property
    def dtype_name(self) -> str:
        """As users see it: float32, bfloat16, float16 or int8."""
        return "int8" if self.precision == "int8" else str(self.dtype).removeprefix("torch.")


def place(device: str, precision: Precision, backend: BackendName | Literal["auto"]) -> Placement:
    """The placement asked for. Device `auto` is CUDA, else MPS, else the CPU; backend `auto` is openvino on a CPU
    that has it installed, else eager.

    Raises DeviceUnavailableError for what is not there or does not go together.
    """
    found = torch.device(first_available() if device == "auto" else _checked(device))
    placement = at_precision(Placement(found, "fp32", _backend(found, backend)), precision)
    if precision == "int8" and importlib.util.find_spec("nncf") is None:
        raise DeviceUnavailableError(str(found), "int8 needs NNCF; pip install 'gradless[int8]'")
    return placement


def at_precision(placement: Placement, precision: Precision) -> Placement:
    """The same device and backend in another precision. Raises DeviceUnavailableError where they cannot compute in
    it."""
    device = placement.device
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceUnavailableError(str(device), "it has no bf16 arithmetic; use fp16 or fp32")
    if precision == "fp16" and device.type == "cpu":
        raise DeviceUnavailableError(str(device), "fp16 is for GPUs; use bf16 or fp32")
    if precision == "int8" and placement.backend != "openvino":
        raise DeviceUnavailableError(str(device), "int8 is for the openvino backend, on a CPU; use bf16 or fp32")
    return replace(placement, precision=precision)


def _backend(device: torch.device, wanted: BackendName | Literal["auto"]) -> BackendName:
    installed = importlib.util.find_spec("openvino") is not None
    if wanted == "auto":
        return "openvino" if device.type == "cpu" and installed else "eager"
    if wanted == "openvino" and device.type != "cpu":
        raise DeviceUnavailableError(str(device), "the openvino backend is for CPUs; use eager or compiled")
    if wanted == "openvino" and not installed:
        raise DeviceUnavailableError(str(device), "OpenVINO is not installed; pip install 'gradless[openvino]'")
    if wanted == "compiled" and device.type == "mps":
        raise DeviceUnavailableError(str(device), "the compiled backend is for CUDA and CPUs; use eager")
    return wanted


def first_available() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailableError(name, "use auto, cpu, cuda, cuda:N or mps") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise DeviceUnavailableError(name, "PyTorch does not find it on this machine")
    return name
