"""Ways to run a forward: the backends by name, where each runs, what it needs, and which class implements it. A backend
is made from a loaded model; it maps a batch of pixels to features and logits.

To add a backend, write its module in this package and add one entry to BACKENDS. A user can select it once the setting
GRADLESS_BACKEND (app/settings.py) lists the name; a test compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

import torch

from models.backends.backend import DEFAULT_CACHE_FOLDER, Backend, BackendOptions, BatchHints
from models.hardware.placement import Placement, at_precision, device_of
from models.interface.errors import DeviceUnavailableError
from models.interface.extras import Package, install_command
from models.interface.model_sources import Precision
from models.loading.load import LoadedModel

__all__ = [
    "DEFAULT_CACHE_FOLDER",
    "Backend",
    "BackendOptions",
    "BatchHints",
    "caches_conversions",
    "check",
    "make",
    "names",
    "place",
    "place_all",
]

# OpenVINO and NNCF send usage statistics to their makers at each import, unless this package cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to make an import fail

AUTO = "auto"

_DEVICES = {"cpu": "CPUs", "cuda": "CUDA", "mps": "MPS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A backend as it is known before its module is imported, which takes seconds for some.

    `classes`: the class by type of device, as MODULE.CLASS of this package.
    `preferred_on`: types of devices on which `auto` selects it. `package`: what it needs.
    `int8_package`: what calibration for int8 needs; None: the backend does not compute in int8.
    `caches_conversions`: it keeps converted models on disk, which may be damaged or out of date.
    `selectable`: users may ask for it by name.
    """

    classes: Mapping[str, str]
    preferred_on: frozenset[str] = frozenset()
    package: Package | None = None
    int8_package: Package | None = None
    caches_conversions: bool = False
    selectable: bool = True

    @property
    def installed(self) -> bool:
        return self.package is None or self.package.installed


_EAGER = "pytorch.EagerBackend"
# On CUDA the kernels of either network are recorded and replayed.
_RECORDED = "recorded.RecordedBackend"
_NULL = "pytorch.NullBackend"

# `auto` selects the first that is preferred on the device and installed, else the first of all.
BACKENDS: dict[str, Registration] = {
    "eager": Registration(classes={"cuda": _RECORDED, "cpu": _EAGER, "mps": _EAGER}),
    "compiled": Registration(classes={"cuda": _RECORDED, "cpu": "pytorch.CompiledBackend"}),
    "openvino": Registration(
        classes={"cpu": "openvino.OpenVinoBackend"},
        preferred_on=frozenset({"cpu"}),
        package=Package("openvino", "OpenVINO", extra="openvino"),
        int8_package=Package("nncf", "NNCF", extra="int8"),
        caches_conversions=True,
    ),
    "null": Registration(classes={"cuda": _NULL, "cpu": _NULL, "mps": _NULL}, selectable=False),
}


def names() -> tuple[str, ...]:
    return tuple(name for name, registered in BACKENDS.items() if registered.selectable)


def place(devices: str, precision: Precision, backend: str) -> Placement:
    """Return the placement asked for, on the first of a comma-separated list of devices. Device `auto` is CUDA, else
    MPS, else the CPU; backend `auto` is the preferred one of the device that is installed, else eager.

    Raises DeviceUnavailableError for what is not available or does not go together.
    """
    found = device_of(devices.split(",", maxsplit=1)[0].strip())
    placement = at_precision(Placement(found, "fp32", _selected(found, backend)), precision)
    check(placement)
    package = BACKENDS[placement.backend].int8_package
    if precision == "int8" and package is not None and not package.installed:
        raise DeviceUnavailableError(str(found), f"int8 needs {package.title}: {install_command(package.extra)}")
    return placement


def place_all(devices: str, precision: Precision, backend: str) -> tuple[Placement, ...]:
    """As `place`, on each of a list of different devices of one type: answers of other types differ."""
    placements = tuple(place(name, precision, backend) for name in devices.split(","))
    found = {each.device for each in placements}
    if len(found) < len(placements) or len({device.type for device in found}) > 1:
        raise DeviceUnavailableError(devices, "list different devices of one type, such as cuda:0,cuda:1")
    return placements


def check(placement: Placement) -> None:
    """Raise DeviceUnavailableError if the backend of `placement` cannot run there, or not in its precision."""
    name, device = placement.backend, placement.device
    registered = BACKENDS[name]
    if device.type not in registered.classes:
        places = " and ".join(_DEVICES[each] for each in registered.classes)
        others = " or ".join(other for other in names() if device.type in BACKENDS[other].classes)
        raise DeviceUnavailableError(str(device), f"the {name} backend is for {places}; use {others}")
    if (package := registered.package) is not None and not package.installed:
        reason = f"{package.title} is not installed: {install_command(package.extra)}"
        raise DeviceUnavailableError(str(device), reason)
    if placement.precision == "int8" and registered.int8_package is None:
        able = " or ".join(other for other in names() if BACKENDS[other].int8_package is not None)
        raise DeviceUnavailableError(str(device), f"int8 is for the {able} backend; use bf16 or fp32")


def make(model: LoadedModel, options: BackendOptions) -> Backend:
    """Return the backend that `model` is placed on, ready to be warmed up. Raises StartError."""
    placement = model.placement
    check(placement)
    return class_of(BACKENDS[placement.backend].classes[placement.device.type])(model, options)


def class_of(path: str) -> Callable[[LoadedModel, BackendOptions], Backend]:
    """Import the class of a registration, MODULE.CLASS of this package."""
    module, _, name = path.partition(".")
    made: Callable[[LoadedModel, BackendOptions], Backend] = getattr(import_module(f"models.backends.{module}"), name)
    return made


def caches_conversions(placement: Placement) -> bool:
    return BACKENDS[placement.backend].caches_conversions


def _selected(device: torch.device, wanted: str) -> str:
    if wanted == AUTO:
        preferred = [name for name, each in BACKENDS.items() if device.type in each.preferred_on and each.installed]
        return next(iter([*preferred, *BACKENDS]))
    if wanted not in BACKENDS:
        raise DeviceUnavailableError(str(device), f"there is no backend {wanted!r}; use {', '.join((AUTO, *names()))}")
    return wanted
